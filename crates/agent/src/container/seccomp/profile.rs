//! The meaning of a profile: a decision for each system call number.

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

use super::InvalidProfile;
#[cfg(target_arch = "x86_64")]
use super::syscalls_x86_64::SYSCALLS;

const MAX_ERRNO: u32 = 4095;

/// Each takes at least three instructions, so more could not fit anyway.
const MAX_RULES: usize = 4096;

/// SECCOMP_RET_* values (<linux/seccomp.h>).
pub(super) const RET_KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const RET_KILL_THREAD: u32 = 0;
pub(super) const RET_TRAP: u32 = 0x0003_0000;
pub(super) const RET_ERRNO: u32 = 0x0005_0000;
pub(super) const RET_TRACE: u32 = 0x7ff0_0000;
pub(super) const RET_LOG: u32 = 0x7ffc_0000;
pub(super) const RET_ALLOW: u32 = 0x7fff_0000;
/// What a call gets that this kernel does not have.
pub(super) const RET_ENOSYS: u32 = RET_ERRNO | libc::ENOSYS as u32;

/// Comparison of one argument with a constant, all unsigned 64-bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Test {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    GreaterOrEqual(u64),
    Greater(u64),
    /// (mask, value)
    MaskedEqual(u64, u64),
}

/// Number of socket(2).
const SOCKET: u32 = libc::SYS_socket as u32;

/// One condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u8,
    pub(super) test: Test,
}

/// What happens with one call: the first rule whose conditions all hold, else `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Decision {
    pub(super) rules: Vec<(Vec<Condition>, u32)>,
    pub(super) otherwise: u32,
}

/// A whole profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    /// Of the calls that it names.
    pub(super) calls: BTreeMap<u32, Decision>,
    /// Of calls between those.
    pub(super) default: u32,
    /// Of calls above the last one that it names.
    pub(super) newer: u32,
}

impl Profile {
    pub(super) fn from_oci(seccomp: &LinuxSeccomp) -> Result<Self, InvalidProfile> {
        let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
        let mut conditional: BTreeMap<u32, Vec<(Vec<Condition>, u32)>> = BTreeMap::new();
        let mut plain: BTreeMap<u32, u32> = BTreeMap::new();
        let mut rules_left = MAX_RULES;
        for syscall in seccomp.syscalls().as_deref().unwrap_or_default() {
            let ret = action(syscall.action(), syscall.errno_ret())?;
            let alternatives = alternatives(syscall)?;
            rules_left = alternatives
                .len()
                .checked_mul(syscall.names().len())
                .and_then(|rules| rules_left.checked_sub(rules))
                .ok_or(InvalidProfile::TooManyRules)?;
            for number in syscall.names().iter().filter_map(|name| number(name)) {
                if alternatives.is_empty() {
                    plain.entry(number).or_insert(ret);
                } else {
                    let rules = alternatives.iter().map(|conditions| (conditions.clone(), ret));
                    conditional.entry(number).or_default().extend(rules);
                }
            }
        }
        let numbers: Vec<u32> = conditional.keys().chain(plain.keys()).copied().collect();
        let calls = numbers.into_iter().map(|number| {
            let mut rules = conditional.get(&number).cloned().unwrap_or_default();
            if number == SOCKET && !rules.is_empty() {
                rules.insert(0, beyond_int());
            }
            (number, Decision { rules, otherwise: plain.get(&number).copied().unwrap_or(default) })
        });
        let denies = default & 0xffff_0000 == RET_ERRNO;
        Ok(Self { calls: calls.collect(), default, newer: if denies { RET_ENOSYS } else { default } })
    }
}

/// The kernel takes socket's first argument as an `int` and drops its upper half; a comparison sees all of it. A profile that
/// refuses one family (AF_VSOCK, as Docker's does) would let that family with other upper halves pass.
fn beyond_int() -> (Vec<Condition>, u32) {
    let domain = Condition { argument: 0, test: Test::Greater(u64::from(u32::MAX)) };
    (vec![domain], RET_ERRNO | libc::EAFNOSUPPORT as u32)
}

/// Flags of seccomp(2).
pub(super) fn flags(seccomp: &LinuxSeccomp) -> Result<u32, InvalidProfile> {
    let mut flags = 0;
    for flag in seccomp.flags().as_deref().unwrap_or_default() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
            // The process has one thread when the filter is installed.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            flag @ LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(InvalidProfile::Flag(flag.to_string()));
            }
        };
    }
    Ok(flags)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, InvalidProfile> {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => RET_TRAP,
        LinuxSeccompAction::ScmpActErrno if errno <= MAX_ERRNO => RET_ERRNO | errno,
        LinuxSeccompAction::ScmpActTrace if errno <= MAX_ERRNO => RET_TRACE | errno,
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace => {
            return Err(InvalidProfile::Errno(errno));
        }
        LinuxSeccompAction::ScmpActLog => RET_LOG,
        LinuxSeccompAction::ScmpActAllow => RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => return Err(InvalidProfile::Action(action.to_string())),
    })
}

/// The condition lists of a rule of which one must hold; none: the rule has no conditions.
fn alternatives(syscall: &LinuxSyscall) -> Result<Vec<Vec<Condition>>, InvalidProfile> {
    let args = syscall.args().as_deref().unwrap_or_default();
    let conditions = args.iter().map(|arg| condition(arg, syscall)).collect::<Result<Vec<_>, _>>()?;
    let twice = conditions
        .iter()
        .enumerate()
        .any(|(at, one)| conditions.iter().skip(at + 1).any(|other| other.argument == one.argument));
    Ok(match conditions.len() {
        0 => Vec::new(),
        _ if twice => conditions.into_iter().map(|condition| vec![condition]).collect(),
        _ => vec![conditions],
    })
}

fn condition(arg: &LinuxSeccompArg, syscall: &LinuxSyscall) -> Result<Condition, InvalidProfile> {
    let argument = match u8::try_from(arg.index()) {
        Ok(index @ 0..=5) => index,
        _ => {
            let name = syscall.names().first().cloned().unwrap_or_default();
            return Err(InvalidProfile::Argument(arg.index(), name));
        }
    };
    let value = arg.value();
    let test = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => Test::NotEqual(value),
        LinuxSeccompOperator::ScmpCmpLt => Test::Less(value),
        LinuxSeccompOperator::ScmpCmpLe => Test::LessOrEqual(value),
        LinuxSeccompOperator::ScmpCmpEq => Test::Equal(value),
        LinuxSeccompOperator::ScmpCmpGe => Test::GreaterOrEqual(value),
        LinuxSeccompOperator::ScmpCmpGt => Test::Greater(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => Test::MaskedEqual(value, arg.value_two().unwrap_or(0)),
    };
    Ok(Condition { argument, test })
}

/// Number of a system call.
pub(super) fn number(name: &str) -> Option<u32> {
    let at = SYSCALLS.binary_search_by_key(&name, |&(name, _)| name).ok()?;
    SYSCALLS.get(at).map(|&(_, number)| number)
}
