//! A profile as a classic BPF program.
//!
//! ```text
//!   load arch; not ours -> kill process
//!   load number; binary search over ranges of numbers with the same decision
//!     decision without rules:  return
//!     with rules:              for each: load argument halves, compare, return
//! ```
//!
//! All jumps of classic BPF go forward, so the program is built from its end: every target is known when a
//! jump to it is made. A conditional jump reaches 255 instructions; farther targets get an unconditional jump
//! in between. Numbers without conditions on arguments stay free of argument loads, which lets the kernel
//! note them as always allowed and skip the program for them.

use std::collections::BTreeMap;

use super::profile::{Condition, Decision, Profile, RET_ENOSYS, RET_KILL_PROCESS, Test};
use super::{Insn, InvalidProfile};

const MAX_INSNS: usize = 4096;

/// AUDIT_ARCH_X86_64 of <linux/audit.h>.
#[cfg(target_arch = "x86_64")]
pub(super) const ARCH: u32 = 0xc000_003e;
/// Numbers from here on are x32's, or -1.
const FOREIGN: u32 = 0x4000_0000;

/// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

pub(super) const LD_W_ABS: u16 = 0x20;
pub(super) const ALU_AND_K: u16 = 0x54;
pub(super) const JMP_JA: u16 = 0x05;
pub(super) const JMP_JEQ_K: u16 = 0x15;
pub(super) const JMP_JGT_K: u16 = 0x25;
pub(super) const JMP_JGE_K: u16 = 0x35;
pub(super) const RET_K: u16 = 0x06;

/// Distance of an instruction from the program's end.
type Label = usize;

pub(super) fn compile(profile: &Profile) -> Result<Vec<Insn>, InvalidProfile> {
    let mut builder = Builder::default();
    let ranges = ranges(profile);
    let search = builder.search(&ranges);
    let number = builder.load(NUMBER, search);
    let kill = builder.ret(RET_KILL_PROCESS);
    let arch = builder.branch(JMP_JEQ_K, ARCH, number, kill);
    builder.load(ARCHITECTURE, arch);
    let mut program = builder.reversed;
    program.reverse();
    if program.len() > MAX_INSNS {
        return Err(InvalidProfile::TooLong(program.len()));
    }
    Ok(program)
}

/// First numbers of ranges, ascending from 0, with the decision for each.
fn ranges(profile: &Profile) -> Vec<(u32, Decision)> {
    let fixed = |otherwise| Decision { rules: Vec::new(), otherwise };
    let mut ranges = vec![(0, fixed(profile.default))];
    let mut push = |first: u32, decision: Decision| match ranges.last_mut() {
        Some((start, last)) if *start == first => *last = decision,
        Some((_, last)) if *last == decision => {}
        _ => ranges.push((first, decision)),
    };
    for (&number, decision) in &profile.calls {
        push(number, decision.clone());
        push(number + 1, fixed(profile.default));
    }
    let after_last = profile.calls.last_key_value().map_or(0, |(number, _)| number + 1);
    push(after_last, fixed(profile.newer));
    push(FOREIGN, fixed(RET_ENOSYS));
    ranges
}

#[derive(Default)]
struct Builder {
    /// Last instruction first.
    reversed: Vec<Insn>,
    returns: BTreeMap<u32, Label>,
    decisions: BTreeMap<Decision, Label>,
}

impl Builder {
    fn push(&mut self, insn: Insn) -> Label {
        self.reversed.push(insn);
        self.reversed.len()
    }

    /// Instructions between the next one to be made and `label`.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label
    }

    /// A label for `label` that a jump reaches which is made at most two instructions before the next one.
    fn reachable(&mut self, label: Label) -> Label {
        match u32::try_from(self.distance(label)) {
            Ok(operand) if operand > 250 => {
                self.push(Insn { code: JMP_JA, jump_true: 0, jump_false: 0, operand })
            }
            _ => label,
        }
    }

    fn ret(&mut self, value: u32) -> Label {
        if let Some(&label) = self.returns.get(&value) {
            return label;
        }
        let label = self.push(Insn { code: RET_K, jump_true: 0, jump_false: 0, operand: value });
        self.returns.insert(value, label);
        label
    }

    fn branch(&mut self, code: u16, operand: u32, yes: Label, no: Label) -> Label {
        let yes = self.reachable(yes);
        let no = self.reachable(no);
        // `reachable` leaves both within 252, also where the second one put a jump after the first.
        let jump = |distance: usize| u8::try_from(distance).unwrap_or(u8::MAX);
        let (jump_true, jump_false) = (jump(self.distance(yes)), jump(self.distance(no)));
        self.push(Insn { code, jump_true, jump_false, operand })
    }

    /// Loads a word, then goes on at `next`.
    fn load(&mut self, offset: u32, next: Label) -> Label {
        self.fall_through(next);
        self.push(Insn { code: LD_W_ABS, jump_true: 0, jump_false: 0, operand: offset })
    }

    fn mask(&mut self, mask: u32, next: Label) -> Label {
        self.fall_through(next);
        self.push(Insn { code: ALU_AND_K, jump_true: 0, jump_false: 0, operand: mask })
    }

    /// Makes `next` the instruction that follows the next one to be made.
    fn fall_through(&mut self, next: Label) {
        if let Ok(operand @ 1..) = u32::try_from(self.distance(next)) {
            self.push(Insn { code: JMP_JA, jump_true: 0, jump_false: 0, operand });
        }
    }

    fn search(&mut self, ranges: &[(u32, Decision)]) -> Label {
        match ranges {
            [] => self.ret(RET_KILL_PROCESS),
            [(_, decision)] => self.decision(decision),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let first = high.first().map_or(0, |(first, _)| *first);
                let high = self.search(high);
                let low = self.search(low);
                self.branch(JMP_JGE_K, first, high, low)
            }
        }
    }

    fn decision(&mut self, decision: &Decision) -> Label {
        if decision.rules.is_empty() {
            return self.ret(decision.otherwise);
        }
        if let Some(&label) = self.decisions.get(decision) {
            return label;
        }
        let mut label = self.ret(decision.otherwise);
        for (conditions, value) in decision.rules.iter().rev() {
            let no = label;
            let mut yes = self.ret(*value);
            for condition in conditions.iter().rev() {
                yes = self.condition(condition, yes, no);
            }
            label = yes;
        }
        self.decisions.insert(decision.clone(), label);
        label
    }

    fn condition(&mut self, condition: &Condition, yes: Label, no: Label) -> Label {
        let argument = condition.argument;
        match condition.test {
            Test::Equal(value) => self.equal(argument, u64::MAX, value, yes, no),
            Test::NotEqual(value) => self.equal(argument, u64::MAX, value, no, yes),
            Test::MaskedEqual(mask, value) => self.equal(argument, mask, value, yes, no),
            Test::Greater(value) => self.above(argument, JMP_JGT_K, value, yes, no),
            Test::GreaterOrEqual(value) => self.above(argument, JMP_JGE_K, value, yes, no),
            Test::Less(value) => self.above(argument, JMP_JGE_K, value, no, yes),
            Test::LessOrEqual(value) => self.above(argument, JMP_JGT_K, value, no, yes),
        }
    }

    fn equal(&mut self, argument: u8, mask: u64, value: u64, yes: Label, no: Label) -> Label {
        let low = self.branch(JMP_JEQ_K, half(value, 0), yes, no);
        let low = self.masked_load(argument, 0, mask, low);
        let high = self.branch(JMP_JEQ_K, half(value, 1), low, no);
        self.masked_load(argument, 1, mask, high)
    }

    fn masked_load(&mut self, argument: u8, which: u32, mask: u64, next: Label) -> Label {
        let mask = half(mask, which);
        let next = if mask == u32::MAX { next } else { self.mask(mask, next) };
        self.load(offset(argument, which), next)
    }

    /// `code` compares the low halves where the high ones are equal.
    fn above(&mut self, argument: u8, code: u16, value: u64, yes: Label, no: Label) -> Label {
        let low = self.branch(code, half(value, 0), yes, no);
        let low = self.load(offset(argument, 0), low);
        let equal = self.branch(JMP_JEQ_K, half(value, 1), low, no);
        let high = self.branch(JMP_JGT_K, half(value, 1), yes, equal);
        self.load(offset(argument, 1), high)
    }
}

/// Lower (0) or upper (1) half.
fn half(value: u64, which: u32) -> u32 {
    ((value >> (32 * which)) & u64::from(u32::MAX)) as u32
}

/// Place of an argument's half in struct seccomp_data, on a little-endian machine.
fn offset(argument: u8, which: u32) -> u32 {
    ARGUMENTS + 8 * u32::from(argument) + 4 * which
}
