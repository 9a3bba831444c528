//! What the init of a container needs: signals that are waited for, a plain fork, and no descriptor left.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::io::Errno;
use rustix::process::Pid;

use super::check;
use super::clone::PANICKED;

/// Bytes of a kernel signal mask.
const MASK_BYTES: libc::c_long = 8;

/// Above every descriptor that a child of the launcher has: the orders bring at most 253.
const MAX_NUMBER: u32 = 1024;

/// Every signal.
static ALL: u64 = u64::MAX;

/// Blocks every signal that can be blocked, libc's own two included: each then waits for [`wait_any`].
///
/// # Errors
/// Those of sigprocmask(2): a seccomp filter.
pub(crate) fn block_all() -> rustix::io::Result<()> {
    let old = std::ptr::null_mut::<u64>();
    // SAFETY: `ALL` is a kernel signal mask of eight bytes that lives through the call; no old mask is asked for.
    let ret = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const ALL, old, MASK_BYTES)
    };
    check(ret).map(|_| ())
}

/// Waits for any blocked signal and gives its number.
///
/// # Errors
/// `Errno::INTR` where this process was stopped and goes on.
pub(crate) fn wait_any() -> rustix::io::Result<i32> {
    let info = std::ptr::null_mut::<libc::siginfo_t>();
    let for_ever = std::ptr::null::<libc::timespec>();
    // SAFETY: `ALL` is a kernel signal mask of eight bytes that lives through the call; neither details nor a limit
    // are asked for.
    let number = check(unsafe {
        libc::syscall(libc::SYS_rt_sigtimedwait, &raw const ALL, info, for_ever, MASK_BYTES)
    })?;
    i32::try_from(number).map_err(|_| Errno::INVAL)
}

/// Forks, by the plain call that every seccomp profile for containers allows (the usual ones refuse clone3). The child
/// runs `child` and exits with its result; it never returns into the caller's frames.
///
/// This process must have one thread, which children of the launcher have: [`super::clone::fork`] has seen to it.
///
/// # Errors
/// Those of fork(2).
pub(crate) fn fork(child: impl FnOnce() -> u8) -> rustix::io::Result<Pid> {
    // SAFETY: there is one thread, so the child's copy of this memory holds no lock of another one.
    let pid = check(libc::c_long::from(unsafe { libc::fork() }))?;
    if pid == 0 {
        exit_with(child);
    }
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)
}

/// Closes every descriptor from `first` on, lives `life` and exits with its result.
///
/// The descriptors of the frames that called are closed too, and so must never be used again: `life` is a plain
/// function, which can hold none, and no caller's frame is returned to.
pub(crate) fn close_and_live(first: u32, program: Pid, life: fn(Pid) -> u8) -> ! {
    // SAFETY: closes descriptors that nobody uses any more, see above.
    let closed = check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) });
    if closed.is_err() {
        // A filter that does not know the call. The agent's channel among them must not stay open.
        for fd in (first..MAX_NUMBER).filter_map(|fd| i32::try_from(fd).ok()) {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
    exit_with(|| life(program))
}

fn exit_with(body: impl FnOnce() -> u8) -> ! {
    let status = catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED);
    // SAFETY: ends this process without running the exit handlers of the launcher's copy.
    unsafe { libc::_exit(i32::from(status)) }
}
