//! System calls of this part that no safe crate offers: the only unsafe code of container creation.
//!
//! | module | calls |
//! |---|---|
//! | [`clone`] | clone3 as a fork of a single-threaded process |
//! | [`mount`] | mount_setattr, BLKPG |
//! | [`seccomp`] | seccomp |
//! | [`signal`] | rt_sigprocmask, rt_sigtimedwait, fork, close_range for a container's init |
//! | [`task`] | close_range, keyctl, personality, ioprio_set, sched_setattr, signal dispositions |
//!
//! Every function takes and gives owned or borrowed Rust values, so that no caller needs `unsafe`.

#![expect(unsafe_code, reason = "raw system calls; each block states why it is sound")]

pub(crate) mod clone;
pub(crate) mod mount;
pub(crate) mod seccomp;
pub(crate) mod signal;
pub(crate) mod task;

use rustix::io::Errno;

/// Result of a raw system call.
fn check(ret: libc::c_long) -> rustix::io::Result<libc::c_long> {
    if ret >= 0 {
        return Ok(ret);
    }
    // libc::syscall has put the number into errno.
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
