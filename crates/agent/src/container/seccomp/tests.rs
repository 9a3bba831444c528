use oci_spec::runtime::LinuxSeccomp;
use proptest::prelude::*;

use super::compile::{self, ALU_AND_K, JMP_JA, JMP_JEQ_K, JMP_JGE_K, JMP_JGT_K, LD_W_ABS, RET_K};
use super::profile::{
    Condition, Decision, Profile, RET_ALLOW, RET_ENOSYS, RET_ERRNO, RET_KILL_PROCESS, Test, number,
};
use super::*;

/// struct seccomp_data.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    args: [u64; 6],
}

impl Call {
    fn native(number: u32, args: [u64; 6]) -> Self {
        Self { number, arch: compile::ARCH, args }
    }

    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            offset @ 16..64 if offset % 4 == 0 => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset % 8 == 0 { arg as u32 } else { (arg >> 32) as u32 }
            }
            offset => panic!("load outside struct seccomp_data: {offset}"),
        }
    }
}

/// The kernel's interpreter, for the instructions that the compiler uses; panics on anything it would refuse.
fn run(program: &[Insn], call: &Call) -> u32 {
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let insn = program[at];
        at += 1;
        let taken = match insn.code {
            LD_W_ABS => {
                accumulator = call.word(insn.operand);
                continue;
            }
            ALU_AND_K => {
                accumulator &= insn.operand;
                continue;
            }
            JMP_JA => {
                at += insn.operand as usize;
                continue;
            }
            RET_K => return insn.operand,
            JMP_JEQ_K => accumulator == insn.operand,
            JMP_JGT_K => accumulator > insn.operand,
            JMP_JGE_K => accumulator >= insn.operand,
            code => panic!("unknown instruction {code:#x}"),
        };
        at += usize::from(if taken { insn.jump_true } else { insn.jump_false });
    }
}

/// What the profile means, straight from its data.
fn expected(profile: &Profile, call: &Call) -> u32 {
    if call.arch != compile::ARCH {
        return RET_KILL_PROCESS;
    }
    if call.number >= 0x4000_0000 {
        return RET_ENOSYS;
    }
    let holds = |condition: &Condition| {
        let arg = call.args[usize::from(condition.argument)];
        match condition.test {
            Test::Equal(value) => arg == value,
            Test::NotEqual(value) => arg != value,
            Test::Less(value) => arg < value,
            Test::LessOrEqual(value) => arg <= value,
            Test::GreaterOrEqual(value) => arg >= value,
            Test::Greater(value) => arg > value,
            Test::MaskedEqual(mask, value) => arg & mask == value,
        }
    };
    let Some(decision) = profile.calls.get(&call.number) else {
        let last = profile.calls.last_key_value().map(|(number, _)| *number);
        return if last.is_none_or(|last| call.number > last) { profile.newer } else { profile.default };
    };
    let hit = decision.rules.iter().find(|(conditions, _)| conditions.iter().all(holds));
    hit.map_or(decision.otherwise, |(_, value)| *value)
}

fn interesting() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..4,
        Just(u64::from(u32::MAX)),
        Just(1 << 32),
        Just((1 << 32) + 1),
        Just(0x7e02_0000),
        Just(u64::MAX),
        any::<u64>()
    ]
}

fn test() -> impl Strategy<Value = Test> {
    (0..7, interesting(), interesting()).prop_map(|(kind, value, other)| match kind {
        0 => Test::Equal(value),
        1 => Test::NotEqual(value),
        2 => Test::Less(value),
        3 => Test::LessOrEqual(value),
        4 => Test::GreaterOrEqual(value),
        5 => Test::Greater(value),
        _ => Test::MaskedEqual(value, value & other),
    })
}

fn ret() -> impl Strategy<Value = u32> {
    prop_oneof![Just(RET_ALLOW), Just(RET_KILL_PROCESS), (0u32..40).prop_map(|errno| RET_ERRNO | errno)]
}

fn profile() -> impl Strategy<Value = Profile> {
    let condition = (0u8..6, test()).prop_map(|(argument, test)| Condition { argument, test });
    let rule = (prop::collection::vec(condition, 1..4), ret());
    let decision = (prop::collection::vec(rule, 0..4), ret())
        .prop_map(|(rules, otherwise)| Decision { rules, otherwise });
    (prop::collection::btree_map(0u32..500, decision, 0..60), ret(), ret())
        .prop_map(|(calls, default, newer)| Profile { calls, default, newer })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn program_decides_as_the_profile_says(
        profile in profile(),
        calls in prop::collection::vec((0u32..520, prop::array::uniform6(interesting())), 40),
    ) {
        let program = compile::compile(&profile).unwrap();
        for (number, args) in calls {
            let call = Call::native(number, args);
            prop_assert_eq!(run(&program, &call), expected(&profile, &call), "{:?}", call);
        }
        for number in [0x4000_0000, 0x4000_0001, u32::MAX] {
            prop_assert_eq!(run(&program, &Call::native(number, [0; 6])), RET_ENOSYS);
        }
        let foreign = Call { arch: 0x4000_0003, ..Call::native(1, [0; 6]) };
        prop_assert_eq!(run(&program, &foreign), RET_KILL_PROCESS);
    }

    #[test]
    fn filter_survives_its_bytes(profile in profile(), flags: u32) {
        let filter = Filter { program: compile::compile(&profile).unwrap(), flags };
        prop_assert_eq!(Filter::from_bytes(&filter.to_bytes()), Some(filter));
    }
}

fn oci(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

#[test]
fn table_is_sorted_and_agrees_with_libc() {
    let table = super::syscalls_x86_64::SYSCALLS;
    assert!(table.is_sorted_by(|a, b| a.0 < b.0));
    assert_eq!(number("read").map(i64::from), Some(libc::SYS_read));
    assert_eq!(number("openat2").map(i64::from), Some(libc::SYS_openat2));
    assert_eq!(number("clone3").map(i64::from), Some(libc::SYS_clone3));
    assert_eq!(number("s390_pci_mmio_read"), None);
}

#[test]
fn newer_calls_get_enosys_where_the_default_is_an_errno() {
    let seccomp = oci(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read","openat2","nosuchcall"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let filter = Filter::compile(&seccomp).unwrap();
    let decide = |number: i64| run(&filter.program, &Call::native(number as u32, [0; 6]));
    assert_eq!(decide(libc::SYS_read), RET_ALLOW);
    assert_eq!(decide(libc::SYS_mount), RET_ERRNO | 1);
    assert_eq!(decide(libc::SYS_openat2), RET_ALLOW);
    assert_eq!(decide(libc::SYS_openat2 + 1), RET_ENOSYS);
}

#[test]
fn two_conditions_on_one_argument_are_alternatives() {
    let seccomp = oci(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW",
        "args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let filter = Filter::compile(&seccomp).unwrap();
    let decide =
        |arg| run(&filter.program, &Call::native(libc::SYS_personality as u32, [arg, 0, 0, 0, 0, 0]));
    assert_eq!((decide(0), decide(8), decide(4)), (RET_ALLOW, RET_ALLOW, RET_ERRNO | 1));
}

#[test]
fn socket_family_is_compared_as_the_kernel_takes_it() {
    let seccomp =
        oci(r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["socket"],"action":"SCMP_ACT_ALLOW",
        "args":[{"index":0,"value":40,"op":"SCMP_CMP_NE"}]}]}"#);
    let filter = Filter::compile(&seccomp).unwrap();
    let decide =
        |family| run(&filter.program, &Call::native(libc::SYS_socket as u32, [family, 1, 0, 0, 0, 0]));
    assert_eq!((decide(2), decide(40)), (RET_ALLOW, RET_ERRNO | 1));
    assert_eq!(decide((1 << 32) + 40), RET_ERRNO | libc::EAFNOSUPPORT as u32);
}

#[test]
fn what_needs_a_partner_or_cannot_be_is_refused() {
    let bad = [
        r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":4096}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
    ];
    for json in bad {
        assert!(Filter::compile(&oci(json)).is_err(), "{json}");
    }
}

#[test]
fn far_targets_are_reached() {
    let conditions = |number: u32| {
        (0..6).map(|argument| Condition { argument, test: Test::Greater(u64::from(number)) }).collect()
    };
    let calls = (0..60).map(|number| {
        (2 * number, Decision { rules: vec![(conditions(number), RET_ERRNO | number)], otherwise: RET_ALLOW })
    });
    let profile = Profile { calls: calls.collect(), default: RET_ALLOW, newer: RET_ALLOW };
    let program = compile::compile(&profile).unwrap();
    for number in 0..120 {
        for args in [[0; 6], [u64::MAX; 6]] {
            let call = Call::native(number, args);
            assert_eq!(run(&program, &call), expected(&profile, &call), "{call:?}");
        }
    }
}
