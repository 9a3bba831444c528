//! fork, for a server that outlives the command that started it.

#![expect(unsafe_code, reason = "fork, and taking a new end for descriptors 0 to 2")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Which of the two this process is after [`fork`].
pub(crate) enum Fork {
    Parent,
    Child,
}

/// Forks a process that has one thread.
///
/// # Errors
/// What the kernel says; or that there are more threads.
pub(crate) fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads cannot be forked"));
    }
    // SAFETY: there is one thread, and it is here: no other can hold a lock that the child would lack.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        1.. => Ok(Fork::Parent),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts new ends in the place of stdin and stdout, and of stderr where there is one.
pub(crate) fn replace_stdio(null: BorrowedFd<'_>, stderr: Option<BorrowedFd<'_>>) -> io::Result<()> {
    rustix::stdio::dup2_stdin(null)?;
    rustix::stdio::dup2_stdout(null)?;
    rustix::stdio::dup2_stderr(stderr.unwrap_or(null).as_fd())?;
    Ok(())
}

/// Marks every descriptor above stderr close-on-exec: a caller may have leaked some.
pub(crate) fn close_on_exec() {
    // SAFETY: no memory is touched and no descriptor closed; kernels before 5.11 refuse, and nothing changes.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}
