//! Device rules as a BPF_PROG_TYPE_CGROUP_DEVICE program (C10, F12).
//!
//! Everything is denied but what a rule allows. Rules are as in cgroup v1: a later one overrides an earlier one,
//! for each of read, write and mknod by itself. After the configuration's rules come those for the devices that
//! every container has, so that no configuration can take its /dev/null away.
//!
//! The program goes through the rules from the last to the first. One register holds the accesses that were
//! asked for and on which no rule has spoken yet:
//!
//! ```text
//! rule matches the device, allows -> take its accesses out of the register; none left: allow
//! rule matches the device, denies -> one of its accesses is in the register: deny
//! no rule left                    -> deny
//! ```

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use nacre_bpf::{Insn, load_device_program};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::resources::InvalidResources;

const MAX_RULES: usize = 1024;

/// Accesses as the kernel has them (BPF_DEVCG_ACC_*).
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    allow: bool,
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// Device types as the kernel numbers them (BPF_DEVCG_DEV_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block = 1,
    Char = 2,
}

/// null, zero, full, random, urandom, tty, ptmx and every pseudo terminal.
const DEFAULTS: [(u32, Option<u32>); 8] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(2)),
    (136, None),
];

impl Rule {
    fn is_everything(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

/// Access to a disk of the guest's.
pub(super) fn disk((major, minor): (u32, u32), read_only: bool) -> Rule {
    let access = if read_only { READ | MKNOD } else { ALL };
    Rule { allow: true, kind: Some(Kind::Block), major: Some(major), minor: Some(minor), access }
}

pub(super) fn rules(oci: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, InvalidResources> {
    if oci.len() > MAX_RULES {
        return Err(InvalidResources::TooMany("devices"));
    }
    oci.iter().map(rule).collect()
}

fn rule(oci: &LinuxDeviceCgroup) -> Result<Rule, InvalidResources> {
    let bad = InvalidResources::DeviceRule;
    let mut access = 0;
    for letter in oci.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return Err(bad("access has letters beside r, w and m")),
        };
    }
    let number = |number: Option<i64>, most: u32| match number {
        None | Some(-1) => Ok(None),
        Some(number) => match u32::try_from(number) {
            Ok(number) if number <= most => Ok(Some(number)),
            _ => Err(bad("the device number is out of range")),
        },
    };
    Ok(Rule {
        allow: oci.allow(),
        kind: match oci.typ().unwrap_or_default() {
            LinuxDeviceType::B => Some(Kind::Block),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(Kind::Char),
            LinuxDeviceType::A => None,
            LinuxDeviceType::P => return Err(bad("a fifo is no device")),
        },
        major: number(oci.major(), 4095)?,
        minor: number(oci.minor(), 1_048_575)?,
        access,
    })
}

const LOAD_WORD: u8 = 0x61;
const MOV64_IMMEDIATE: u8 = 0xb7;
const MOV64_REGISTER: u8 = 0xbf;
const XOR64_IMMEDIATE: u8 = 0xa7;
const OR64_REGISTER: u8 = 0x4f;
const AND32_IMMEDIATE: u8 = 0x54;
const RSH32_IMMEDIATE: u8 = 0x74;
const JEQ_IMMEDIATE: u8 = 0x15;
const JNE_IMMEDIATE: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Registers: 0 is the result, 1 the context.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const PENDING: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const DIFFERENCE: u8 = 6;
const FIELD: u8 = 7;

/// The program for some rules and the defaults, loaded. Containers with the same rules share it: loading costs more
/// than all else that is done for a cgroup.
///
/// # Errors
/// Those of bpf(2).
pub(super) fn load(rules: &[Rule]) -> rustix::io::Result<Arc<OwnedFd>> {
    static LAST: Mutex<Option<(Vec<Insn>, Arc<OwnedFd>)>> = Mutex::new(None);
    let program = program(rules);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((loaded, fd)) = last.as_ref()
        && *loaded == program
    {
        return Ok(Arc::clone(fd));
    }
    let fd = Arc::new(load_device_program(&program)?);
    *last = Some((program, Arc::clone(&fd)));
    Ok(fd)
}

fn program(rules: &[Rule]) -> Vec<Insn> {
    // struct bpf_cgroup_dev_ctx: access_type (access << 16 | type), major, minor.
    let mut program = vec![
        insn(LOAD_WORD, TYPE | (CONTEXT << 4), 0, 0),
        insn(MOV64_REGISTER, PENDING | (TYPE << 4), 0, 0),
        insn(RSH32_IMMEDIATE, PENDING, 0, 16),
        insn(AND32_IMMEDIATE, TYPE, 0, 0xffff),
        insn(LOAD_WORD, MAJOR | (CONTEXT << 4), 4, 0),
        insn(LOAD_WORD, MINOR | (CONTEXT << 4), 8, 0),
    ];
    let defaults = DEFAULTS.iter().map(|&(major, minor)| Rule {
        allow: true,
        kind: Some(Kind::Char),
        major: Some(major),
        minor,
        access: ALL,
    });
    for rule in defaults.rev().chain(rules.iter().rev().copied()) {
        // Nothing before it matters, and the verifier refuses instructions that are never reached.
        if rule.is_everything() {
            program.extend(finish(i32::from(rule.allow)));
            return program;
        }
        add_rule(&mut program, &rule);
    }
    program.extend(finish(0));
    program
}

/// One rule: zero is what the differences of all fields that it names amount to where it matches.
///
/// One branch a rule, on a register that nothing reads later, so that the verifier need not follow what is known of
/// each field on each way through; a rule on all accesses decides at once.
fn add_rule(program: &mut Vec<Insn>, rule: &Rule) {
    let fields = [
        rule.kind.map(|kind| (TYPE, kind as u32)),
        rule.major.map(|major| (MAJOR, major)),
        rule.minor.map(|minor| (MINOR, minor)),
    ];
    let mut is_first = true;
    for (register, value) in fields.into_iter().flatten() {
        let into = if is_first { DIFFERENCE } else { FIELD };
        program.push(insn(MOV64_REGISTER, into | (register << 4), 0, 0));
        program.push(insn(XOR64_IMMEDIATE, into, 0, value as i32));
        if !is_first {
            program.push(insn(OR64_REGISTER, DIFFERENCE | (FIELD << 4), 0, 0));
        }
        is_first = false;
    }
    let body = verdict(rule);
    if !is_first {
        program.push(insn(JNE_IMMEDIATE, DIFFERENCE, body.len() as i16, 0));
    }
    program.extend(body);
}

/// What a matching rule does: five instructions at most, the last of which the next rule follows.
fn verdict(rule: &Rule) -> Vec<Insn> {
    let access = i32::from(rule.access);
    match (rule.access, rule.allow) {
        (ALL, allow) => finish(i32::from(allow)).to_vec(),
        (_, true) => {
            let take = insn(AND32_IMMEDIATE, PENDING, 0, !access);
            [vec![take, insn(JNE_IMMEDIATE, PENDING, 2, 0)], finish(1).to_vec()].concat()
        }
        (_, false) => {
            let copy = insn(MOV64_REGISTER, RESULT | (PENDING << 4), 0, 0);
            let mask = insn(AND32_IMMEDIATE, RESULT, 0, access);
            [vec![copy, mask, insn(JEQ_IMMEDIATE, RESULT, 2, 0)], finish(0).to_vec()].concat()
        }
    }
}

fn finish(result: i32) -> [Insn; 2] {
    [insn(MOV64_IMMEDIATE, RESULT, 0, result), insn(EXIT, 0, 0, 0)]
}

fn insn(code: u8, registers: u8, offset: i16, immediate: i32) -> Insn {
    Insn { code, registers, offset, immediate }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy)]
    struct Request {
        kind: u32,
        major: u32,
        minor: u32,
        access: u8,
    }

    /// The kernel's semantics of the few instructions that are used.
    fn run(program: &[Insn], request: &Request) -> bool {
        let mut registers = [0u64; 16];
        let mut at = 0usize;
        loop {
            let insn = program[at];
            at += 1;
            let to = usize::from(insn.registers & 15);
            let from = usize::from(insn.registers >> 4);
            let taken = match insn.code {
                LOAD_WORD => {
                    registers[to] = u64::from(match insn.offset {
                        0 => u32::from(request.access) << 16 | request.kind,
                        4 => request.major,
                        8 => request.minor,
                        offset => panic!("load outside the context: {offset}"),
                    });
                    false
                }
                MOV64_IMMEDIATE => {
                    registers[to] = insn.immediate as i64 as u64;
                    false
                }
                MOV64_REGISTER => {
                    registers[to] = registers[from];
                    false
                }
                XOR64_IMMEDIATE => {
                    registers[to] ^= insn.immediate as i64 as u64;
                    false
                }
                OR64_REGISTER => {
                    registers[to] |= registers[from];
                    false
                }
                AND32_IMMEDIATE => {
                    registers[to] = u64::from(registers[to] as u32 & insn.immediate as u32);
                    false
                }
                RSH32_IMMEDIATE => {
                    registers[to] = u64::from((registers[to] as u32) >> insn.immediate);
                    false
                }
                JEQ_IMMEDIATE => registers[to] == insn.immediate as i64 as u64,
                JNE_IMMEDIATE => registers[to] != insn.immediate as i64 as u64,
                EXIT => return registers[0] == 1,
                code => panic!("unknown instruction {code:#x}"),
            };
            if taken {
                at += usize::try_from(insn.offset).unwrap();
            }
        }
    }

    /// What the rules mean: for each access the last rule that speaks on it decides.
    fn expected(rules: &[Rule], request: &Request) -> bool {
        let is_default = request.kind == 2
            && DEFAULTS.iter().any(|&(major, minor)| {
                request.major == major && minor.is_none_or(|minor| request.minor == minor)
            });
        let bits = [MKNOD, READ, WRITE].into_iter().filter(|bit| request.access & bit != 0);
        is_default
            || bits.into_iter().all(|bit| {
                let speaks = |rule: &&Rule| {
                    rule.access & bit != 0
                        && rule.kind.is_none_or(|kind| kind as u32 == request.kind)
                        && rule.major.is_none_or(|major| major == request.major)
                        && rule.minor.is_none_or(|minor| minor == request.minor)
                };
                rules.iter().rev().find(speaks).is_some_and(|rule| rule.allow)
            })
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let kind = prop_oneof![Just(None), Just(Some(Kind::Block)), Just(Some(Kind::Char))];
        (any::<bool>(), kind, prop::option::of(0u32..4), prop::option::of(0u32..4), 0u8..8)
            .prop_map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access })
    }

    proptest! {
        #[test]
        fn program_decides_as_the_rules_say(
            rules in prop::collection::vec(any_rule(), 0..12),
            requests in prop::collection::vec((1u32..3, 0u32..6, 0u32..10, 1u8..8), 40),
        ) {
            let program = program(&rules);
            for (kind, major, minor, access) in requests {
                let request = Request { kind, major, minor, access };
                prop_assert_eq!(run(&program, &request), expected(&rules, &request), "{:?}", request);
            }
        }
    }

    #[test]
    fn c10_without_rules_only_the_default_devices_work() {
        let program = program(&[]);
        let null = Request { kind: 2, major: 1, minor: 3, access: ALL };
        let memory = Request { kind: 2, major: 1, minor: 1, access: READ };
        let disk = Request { kind: 1, major: 254, minor: 0, access: MKNOD };
        assert_eq!([null, memory, disk].map(|request| run(&program, &request)), [true, false, false]);
    }

    #[test]
    fn impossible_rules_are_refused() {
        for bad in [
            r#"{"allow":true,"access":"rx"}"#,
            r#"{"allow":true,"type":"c","major":4096}"#,
            r#"{"allow":true,"type":"c","major":-2}"#,
            r#"{"allow":true,"type":"p"}"#,
        ] {
            assert!(rule(&serde_json::from_str(bad).unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn letters_and_wildcards_are_understood() {
        let parsed = rule(
            &serde_json::from_str(r#"{"allow":true,"type":"c","major":10,"minor":-1,"access":"rw"}"#)
                .unwrap(),
        );
        let expected =
            Rule { allow: true, kind: Some(Kind::Char), major: Some(10), minor: None, access: READ | WRITE };
        assert_eq!(parsed.unwrap(), expected);
    }
}
