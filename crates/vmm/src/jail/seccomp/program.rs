//! From a list to a BPF program: a binary search by system call number, then the conditions of that call.
//!
//! seccompiler makes programs too, but linear ones. When a program is installed, the kernel runs it for every system
//! call number there is, to learn which are always allowed; with a linear program of 300 instructions that takes a millisecond for each
//! thread, which is more than the rest of a thread's start.

use std::collections::BTreeMap;

use seccompiler::sock_filter;

use super::{Allowed, When};

/// `seccomp_data` (include/uapi/linux/seccomp.h): number, architecture, instruction pointer, six arguments.
const DATA_NUMBER: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARGS: u32 = 16;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_EQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_SET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RET: u16 = 0x06; // BPF_RET | BPF_K

/// A jump that BPF's one-byte offsets cannot express: a list has become too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a jump over {0} instructions is too far for BPF")]
pub struct JumpTooFar(usize);

/// A program that allows what the lists allow and kills the process for anything else.
pub(super) fn allow(lists: &[&[Allowed]]) -> Result<Vec<sock_filter>, JumpTooFar> {
    // By number; an entry without conditions wins over one with.
    let mut calls: BTreeMap<u32, Option<Vec<When>>> = BTreeMap::new();
    for allowed in lists.iter().flat_map(|list| list.iter()) {
        let conditions = calls.entry(allowed.number).or_insert_with(|| Some(Vec::new()));
        match conditions {
            Some(known) if !allowed.when.is_empty() => known.extend(allowed.when),
            _ => *conditions = None,
        }
    }
    let calls: Vec<_> = calls.into_iter().collect();
    let mut program = prologue();
    program.extend(search(&calls)?);
    Ok(program)
}

/// A program that makes one call fail with `errno` and lets everything else pass.
pub(super) fn refuse(number: u32, errno: u16) -> Vec<sock_filter> {
    let mut program = prologue();
    program.extend([jump(JUMP_EQ, number, 0, 1), ret(RET_ERRNO | u32::from(errno)), ret(RET_ALLOW)]);
    program
}

/// Calls by another architecture's table (32-bit) end here. x32 calls have numbers that no list has.
fn prologue() -> Vec<sock_filter> {
    vec![load(DATA_ARCH), jump(JUMP_EQ, AUDIT_ARCH_X86_64, 1, 0), ret(RET_KILL_PROCESS), load(DATA_NUMBER)]
}

fn search(calls: &[(u32, Option<Vec<When>>)]) -> Result<Vec<sock_filter>, JumpTooFar> {
    match calls {
        [] => Ok(vec![ret(RET_KILL_PROCESS)]),
        [(number, when)] => {
            let then = match when {
                None => vec![ret(RET_ALLOW)],
                Some(when) => conditions(when),
            };
            let mut program = vec![jump(JUMP_EQ, *number, 0, distance(then.len())?)];
            program.extend(then);
            program.push(ret(RET_KILL_PROCESS));
            Ok(program)
        }
        _ => {
            let (low, high) = calls.split_at(calls.len() / 2);
            let below = search(low)?;
            let middle = high.first().map_or(0, |(number, _)| *number);
            let mut program = vec![jump(JUMP_GE, middle, distance(below.len())?, 0)];
            program.extend(below);
            program.extend(search(high)?);
            Ok(program)
        }
    }
}

/// Allows where any condition holds.
fn conditions(when: &[When]) -> Vec<sock_filter> {
    let mut program = Vec::new();
    for condition in when {
        match *condition {
            When::Is(index, value) => {
                program.extend([load(argument(index)), jump(JUMP_EQ, value, 0, 1), ret(RET_ALLOW)]);
            }
            When::Has(index, bit) => {
                program.extend([load(argument(index)), jump(JUMP_SET, bit, 0, 1), ret(RET_ALLOW)]);
            }
            When::Lacks(index, bit) => {
                program.extend([load(argument(index)), jump(JUMP_SET, bit, 1, 0), ret(RET_ALLOW)]);
            }
        }
    }
    program.push(ret(RET_KILL_PROCESS));
    program
}

/// Offset of the low word of an argument.
fn argument(index: u8) -> u32 {
    DATA_ARGS + 8 * u32::from(index)
}

fn distance(instructions: usize) -> Result<u8, JumpTooFar> {
    u8::try_from(instructions).map_err(|_| JumpTooFar(instructions))
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn ret(k: u32) -> sock_filter {
    sock_filter { code: RET, jt: 0, jf: 0, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALLOWED: u32 = RET_ALLOW;
    const KILLED: u32 = RET_KILL_PROCESS;

    /// Runs a program as the kernel would.
    fn run(program: &[sock_filter], arch: u32, number: u32, args: [u32; 6]) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let branch = |taken: bool| usize::from(if taken { jt } else { jf });
            at += 1 + match code {
                LOAD => {
                    value = match k {
                        DATA_NUMBER => number,
                        DATA_ARCH => arch,
                        _ => args[(k - DATA_ARGS) as usize / 8],
                    };
                    0
                }
                JUMP_EQ => branch(value == k),
                JUMP_GE => branch(value >= k),
                JUMP_SET => branch(value & k != 0),
                RET => return k,
                _ => panic!("no such instruction {code:#x}"),
            };
        }
    }

    fn call(program: &[sock_filter], number: u32, args: [u32; 6]) -> u32 {
        run(program, AUDIT_ARCH_X86_64, number, args)
    }

    #[test]
    fn other_architectures_are_killed() {
        let program = allow(&[&[Allowed { number: 1, when: &[] }]]).unwrap();
        assert_eq!(run(&program, 0x4000_0003, 1, [0; 6]), KILLED);
        assert_eq!(call(&program, 1, [0; 6]), ALLOWED);
        assert_eq!(call(&program, 1 | 0x4000_0000, [0; 6]), KILLED);
    }

    #[test]
    fn conditions_of_all_lists_count() {
        let program = allow(&[
            &[Allowed { number: 16, when: &[When::Is(1, 7), When::Is(1, 8)] }],
            &[Allowed { number: 16, when: &[When::Is(1, 9)] }],
        ])
        .unwrap();
        for (value, verdict) in [(6, KILLED), (7, ALLOWED), (8, ALLOWED), (9, ALLOWED), (10, KILLED)] {
            assert_eq!(call(&program, 16, [0, value, 0, 0, 0, 0]), verdict, "{value}");
        }
    }

    #[test]
    fn unconditional_entry_wins() {
        let program =
            allow(&[&[Allowed { number: 5, when: &[When::Is(0, 1)] }, Allowed { number: 5, when: &[] }]]);
        assert_eq!(call(&program.unwrap(), 5, [0; 6]), ALLOWED);
    }

    #[test]
    fn bits_are_looked_at() {
        let program = allow(&[&[
            Allowed { number: 9, when: &[When::Lacks(2, 4)] },
            Allowed { number: 56, when: &[When::Has(0, 0x1_0000)] },
        ]])
        .unwrap();
        assert_eq!(call(&program, 9, [0, 0, 3, 0, 0, 0]), ALLOWED);
        assert_eq!(call(&program, 9, [0, 0, 7, 0, 0, 0]), KILLED);
        assert_eq!(call(&program, 56, [0x1_0011, 0, 0, 0, 0, 0]), ALLOWED);
        assert_eq!(call(&program, 56, [0x11, 0, 0, 0, 0, 0]), KILLED);
    }

    #[test]
    fn refused_call_fails_and_others_pass() {
        let program = refuse(435, 38);
        assert_eq!(call(&program, 435, [0; 6]), RET_ERRNO | 38);
        assert_eq!(call(&program, 434, [0; 6]), ALLOWED);
    }

    proptest! {
        #[test]
        fn search_finds_exactly_the_list(numbers in prop::collection::btree_set(0u32..500, 0..80), probe in 0u32..500) {
            let list: Vec<_> = numbers.iter().map(|number| Allowed { number: *number, when: &[] }).collect();
            let program = allow(&[&list]).unwrap();
            let verdict = if numbers.contains(&probe) { ALLOWED } else { KILLED };
            prop_assert_eq!(call(&program, probe, [0; 6]), verdict);
        }
    }
}
