//! Settings of the calling task.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::check;

/// Marks every descriptor from `first` on close-on-exec.
///
/// # Errors
/// Those of close_range(2).
pub(crate) fn cloexec_from(first: u32) -> rustix::io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: closes nothing now; it only sets a flag, which breaks no owner's descriptor.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }).map(|_| ())
}

/// Closes every other descriptor, whoever in this process owns it.
///
/// For a fork that never returns to whoever does.
pub(crate) fn close_all_but(kept: impl AsFd) {
    let kept = kept.as_fd().as_raw_fd().unsigned_abs();
    if let Some(below) = kept.checked_sub(1) {
        // SAFETY: breaks the owners of descriptors, none of whom runs again: see above.
        unsafe { libc::syscall(libc::SYS_close_range, 0, below, 0) };
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, kept + 1, u32::MAX, 0) };
}

/// Ends this process with one system call: nothing is dropped, and no handler runs.
pub(crate) fn end(status: i32) -> ! {
    // SAFETY: never returns, so that nothing of this process is used after it.
    unsafe { libc::_exit(status) }
}

/// Lets the kernel reap the children of this process, and those that it inherits (wait(2), "NOTES").
pub(crate) fn ignore_ends_of_children() {
    // SAFETY: SIG_IGN installs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// struct sigaction as rt_sigaction(2) takes it on x86_64, all zero: SIG_DFL, no flags, empty mask.
#[repr(C)]
#[derive(Default)]
struct KernelSigaction {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// Gives every signal its default action, and unblocks all: execve would keep what is ignored or blocked.
///
/// By the system call itself, since libc keeps two real-time signals to itself.
pub(crate) fn reset_signals() {
    const MASK_BYTES: libc::c_long = 8;
    let default = KernelSigaction::default();
    let old = std::ptr::null_mut::<KernelSigaction>();
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler, `default` lives through the call, and no old action is asked for.
        // SIGKILL and SIGSTOP give EINVAL, as they should.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, old, MASK_BYTES) };
    }
    let none = 0u64;
    let old = std::ptr::null_mut::<u64>();
    // SAFETY: `none` is a kernel signal mask of eight bytes that lives through the call.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, old, MASK_BYTES) };
}

/// Joins a new, empty session keyring, so that the container does not share the agent's.
///
/// # Errors
/// Those of keyctl(2); `Errno::NOSYS` where the kernel has no keys.
pub(crate) fn new_session_keyring() -> rustix::io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, anonymous) }).map(|_| ())
}

/// Sets the execution domain.
///
/// # Errors
/// Those of personality(2).
pub(crate) fn set_personality(persona: u32) -> rustix::io::Result<()> {
    // SAFETY: changes flags of this process only.
    check(libc::c_long::from(unsafe { libc::personality(libc::c_ulong::from(persona)) })).map(|_| ())
}

/// Sets the I/O priority of this process: class in the upper three bits, level below.
///
/// # Errors
/// Those of ioprio_set(2).
pub(crate) fn set_io_priority(priority: u16) -> rustix::io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_long = 1;
    // SAFETY: passes numbers only; 0 is the calling thread.
    let ret =
        unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, libc::c_long::from(priority)) };
    check(ret).map(|_| ())
}

/// struct sched_attr of sched_setattr(2), first version.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub(crate) struct SchedAttr {
    /// Set by [`set_scheduler`].
    pub(crate) size: u32,
    /// SCHED_* policy.
    pub(crate) policy: u32,
    /// SCHED_FLAG_* bits.
    pub(crate) flags: u64,
    /// Nice value.
    pub(crate) nice: i32,
    /// Static priority.
    pub(crate) priority: u32,
    /// SCHED_DEADLINE runtime in nanoseconds.
    pub(crate) runtime: u64,
    /// SCHED_DEADLINE deadline in nanoseconds.
    pub(crate) deadline: u64,
    /// SCHED_DEADLINE period in nanoseconds.
    pub(crate) period: u64,
}

/// Sets the scheduling policy of this process.
///
/// # Errors
/// Those of sched_setattr(2).
pub(crate) fn set_scheduler(attr: &SchedAttr) -> rustix::io::Result<()> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: `attr` has the layout of struct sched_attr (48 bytes, no padding) and says its size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(|_| ())
}

/// Sets one limit of this process. rustix's safe call does not take RLIM_INFINITY as a number.
///
/// # Errors
/// Those of setrlimit(2).
pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> rustix::io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a valid rlimit64 that lives through the call; no old value is asked for.
    let ret = unsafe { libc::prlimit64(0, resource, &raw const limit, std::ptr::null_mut()) };
    check(libc::c_long::from(ret)).map(|_| ())
}

/// Descriptors of the agent itself: it holds some of each container, and two of each cgroup while it walks nested ones.
const AGENT_FILES: u64 = 65_536;
/// What a container gets where its configuration says nothing: select(2) of old programs knows no more than 1024.
const CONTAINER_FILES: (u64, u64) = (1024, 1 << 20);

/// Lets this process open as many descriptors as the agent needs.
///
/// # Errors
/// Those of setrlimit(2).
pub(crate) fn raise_file_limit() -> rustix::io::Result<()> {
    set_limit(libc::RLIMIT_NOFILE, AGENT_FILES, CONTAINER_FILES.1)
}

/// Gives this process, and those that it makes, the limit of containers.
///
/// # Errors
/// Those of setrlimit(2).
pub(crate) fn set_container_file_limit() -> rustix::io::Result<()> {
    let (_, most) = limit(libc::RLIMIT_NOFILE)?;
    let (soft, hard) = CONTAINER_FILES;
    set_limit(libc::RLIMIT_NOFILE, soft.min(most), hard.min(most))
}

/// Soft and hard value of one limit of this process.
///
/// # Errors
/// Those of getrlimit(2).
pub(crate) fn limit(resource: u32) -> rustix::io::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the old value; no new value is given.
    let ret = unsafe { libc::prlimit64(0, resource, std::ptr::null(), &raw mut limit) };
    check(libc::c_long::from(ret))?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Makes namespaces for this process.
///
/// # Errors
/// Those of unshare(2).
pub(crate) fn unshare(namespaces: u64) -> rustix::io::Result<()> {
    let namespaces = i32::try_from(namespaces).map_err(|_| Errno::INVAL)?;
    // SAFETY: callers pass CLONE_NEW* flags only, which change no memory and no descriptor table.
    check(libc::c_long::from(unsafe { libc::unshare(namespaces) })).map(|_| ())
}

/// CLONE_NEW* flag of a namespace file.
///
/// # Errors
/// `Errno::NOTTY` where it is no namespace.
pub(crate) fn namespace_kind(file: impl AsFd) -> rustix::io::Result<u64> {
    /// _IO(0xb7, 0x3) of <linux/nsfs.h>
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the ioctl takes no argument and returns a number.
    let ret = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), NS_GET_NSTYPE) };
    check(libc::c_long::from(ret)).map(libc::c_long::unsigned_abs)
}

/// The last error of libc, for messages.
pub(crate) fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    // std appends " (os error N)".
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
