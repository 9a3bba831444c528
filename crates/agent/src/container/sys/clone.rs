//! clone3(2) used as fork: new namespaces, a cgroup, a pidfd, or a sibling instead of a child.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use rustix::process::Pid;

use super::check;

/// What the new process is to be.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Fork<'a> {
    /// CLONE_NEW* flags.
    pub(crate) namespaces: u64,
    /// The cgroup v2 directory that it is born in.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Its parent is this process's parent (CLONE_PARENT).
    pub(crate) sibling: bool,
}

/// A forked process.
#[derive(Debug)]
pub(crate) struct Forked {
    /// Pid as this process's pid namespace sees it.
    pub(crate) pid: Pid,
    /// Its pidfd.
    pub(crate) pidfd: OwnedFd,
}

/// <linux/sched.h>; libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Exit status of a child that panicked.
pub(super) const PANICKED: u8 = 70;

/// Forks. The child runs `child` and exits with its result; it never returns into the caller's frames.
///
/// # Errors
/// `Errno::BUSY` where this process has more than one thread: a lock that another thread holds would stay
/// locked in the child for ever. Else those of clone3(2).
pub(crate) fn fork(what: &Fork<'_>, child: impl FnOnce() -> u8) -> rustix::io::Result<Forked> {
    if !single_threaded() {
        return Err(Errno::BUSY);
    }
    let mut pidfd: libc::c_int = -1;
    let mut flags = what.namespaces | libc::CLONE_PIDFD as u64;
    let mut exit_signal = libc::SIGCHLD as u64;
    if what.sibling {
        flags |= libc::CLONE_PARENT as u64;
        // A sibling gets this process's own exit signal, which execve has set to SIGCHLD.
        exit_signal = 0;
    }
    let mut cgroup = 0;
    if let Some(dir) = what.cgroup {
        flags |= CLONE_INTO_CGROUP;
        cgroup = u64::from(dir.as_raw_fd().unsigned_abs());
    }
    let args = libc::clone_args {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup,
    };
    // SAFETY: `args` is a valid clone_args of the size given and `pidfd` outlives the call. No memory is
    // shared (no CLONE_VM), so the child goes on with a copy of this stack; there is one thread only, so the
    // copy holds no lock of another one. The descriptor in `cgroup` is borrowed for the call.
    let ret = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) })?;
    if ret == 0 {
        let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
        // SAFETY: ends this process without running the exit handlers of the parent's copy.
        unsafe { libc::_exit(i32::from(status)) }
    }
    // SAFETY: the kernel stored a new descriptor there, which nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(ret).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    Ok(Forked { pid, pidfd })
}

/// Whether this process has one thread: its task directory then has three links (".", "..", one entry).
fn single_threaded() -> bool {
    fs::metadata("/proc/self/task").is_ok_and(|dir| dir.nlink() == 3)
}
