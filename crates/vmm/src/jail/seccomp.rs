//! What each kind of thread may still ask of the host kernel.
//!
//! One allow-list per kind; anything else kills the process, which its owner sees as SIGSYS. No list has a call
//! that opens a path, makes a socket, connects one, or starts a program. Lists stack: a thread inherits its
//! maker's and can only lose by its own, so all threads are made by one (`ThreadKind::Devices`) whose list is
//! the union of the others, and which handles no guest data itself.
//!
//! No list has io_uring: its requests pass by seccomp.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

mod lists;

/// What a thread is for; decides its system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs one vCPU.
    Vcpu,
    /// Answers the owner.
    Control,
    /// Activates and resets devices, and makes every other thread.
    Devices,
    /// Serves a virtio-blk device.
    Block,
    /// Serves a virtio-net device.
    Net,
    /// Serves the vsock device.
    Vsock,
    /// Serves the entropy device.
    Rng,
    /// Serves the balloon.
    Balloon,
    /// Serves virtio-console.
    Console,
    /// Serves the vhost-user front-end of virtio-fs.
    Fs,
}

impl ThreadKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Vcpu,
        Self::Control,
        Self::Devices,
        Self::Block,
        Self::Net,
        Self::Vsock,
        Self::Rng,
        Self::Balloon,
        Self::Console,
        Self::Fs,
    ];
}

/// A filter that could not be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The list cannot be expressed as a BPF program.
    #[error("the system call list of {0:?} threads cannot be compiled")]
    Compile(ThreadKind, #[source] seccompiler::BackendError),
    /// The kernel did not take the program.
    #[error("the system call list of {0:?} threads was refused by the kernel")]
    Install(ThreadKind, #[source] seccompiler::Error),
}

/// Restricts the calling thread for good.
///
/// # Errors
/// [`SeccompError`]; the thread must then not go on.
pub fn install(kind: ThreadKind) -> Result<(), SeccompError> {
    let program = compile(kind).map_err(|source| SeccompError::Compile(kind, source))?;
    seccompiler::apply_filter(&program).map_err(|source| SeccompError::Install(kind, source))
}

/// A system call that is allowed, where `when` is empty or any condition in it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowed {
    number: i64,
    when: &'static [When],
}

/// Condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// The argument's low 32 bits are the value: ioctl numbers, prctl options, flags.
    Is(u8, u32),
    /// The argument's bits of the mask have the value.
    Bits(u8, u64, u64),
}

fn compile(kind: ThreadKind) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut always: Vec<i64> = Vec::new();
    for allowed in lists::of(kind).iter().flat_map(|list| list.iter()) {
        if allowed.when.is_empty() {
            always.push(allowed.number);
        }
        let conditions = rules.entry(allowed.number).or_default();
        for when in allowed.when {
            conditions.push(SeccompRule::new(vec![condition(*when)?])?);
        }
    }
    // An empty list of rules means: whatever the arguments.
    for number in always {
        rules.insert(number, Vec::new());
    }
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?
        .try_into()
}

fn condition(when: When) -> Result<SeccompCondition, seccompiler::BackendError> {
    match when {
        When::Is(index, value) => {
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value))
        }
        When::Bits(index, mask, value) => {
            SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)
        }
    }
}

#[cfg(test)]
mod tests;
