//! What each kind of thread may still ask of the host kernel.
//!
//! One allow-list per kind; anything else kills the process, which its owner sees as SIGSYS. No list has a call
//! that opens a path, makes a socket, connects one, or starts a program. Lists stack: a thread inherits its
//! maker's and can only lose by its own, so all threads are made by one (`ThreadKind::Devices`) whose list is
//! the union of the others, and which handles no guest data itself.
//!
//! No list has io_uring: its requests pass by seccomp.

use seccompiler::BpfProgram;

mod lists;
mod program;

use program::JumpTooFar;

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
    Compile(ThreadKind, #[source] JumpTooFar),
    /// The kernel did not take the program.
    #[error("the system call list of {0:?} threads was refused by the kernel")]
    Install(ThreadKind, #[source] seccompiler::Error),
}

/// Restricts the calling thread for good.
///
/// # Errors
/// [`SeccompError`]; the thread must then not go on.
pub fn install(kind: ThreadKind) -> Result<(), SeccompError> {
    if kind == ThreadKind::Devices {
        // clone3 has its flags behind a pointer, where no filter sees them: "no such call" makes the C library
        // take clone.
        install_program(kind, Ok(program::refuse(libc::SYS_clone3 as u32, libc::ENOSYS as u16)))?;
    }
    install_program(kind, program::allow(lists::of(kind)))
}

fn install_program(kind: ThreadKind, program: Result<BpfProgram, JumpTooFar>) -> Result<(), SeccompError> {
    let program = program.map_err(|source| SeccompError::Compile(kind, source))?;
    seccompiler::apply_filter(&program).map_err(|source| SeccompError::Install(kind, source))
}

/// A system call that is allowed, where `when` is empty or any condition in it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Allowed {
    number: u32,
    when: &'static [When],
}

/// Condition on the low 32 bits of one argument: ioctl numbers, options, flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// It has the value.
    Is(u8, u32),
    /// It has the bit.
    Has(u8, u32),
    /// It lacks the bit.
    Lacks(u8, u32),
}

#[cfg(test)]
mod tests;
