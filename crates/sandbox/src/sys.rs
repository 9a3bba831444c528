//! What neither std nor rustix wraps: `clone3` with a PID namespace, a pidfd and a cgroup; and the one promise
//! that tokio asks of whoever watches a descriptor.
//!
//! A VMM is the first process of its own PID namespace, so that it sees and can signal nobody; and it is born in
//! its cgroup, which saves the migration that writing `cgroup.procs` costs.

#![expect(
    unsafe_code,
    reason = "clone3, what its child does before it executes a program, and AsyncFd::register"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// linux/sched.h; libc's own constant has too narrow a type.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Most descriptors that a program is given.
const MAX_CHILD_FDS: usize = 8;

/// A program to start.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// Path of the executable.
    pub(crate) path: &'a Path,
    /// Arguments after its name.
    pub(crate) args: &'a [String],
    /// `KEY=VALUE`; nothing is inherited.
    pub(crate) env: &'a [String],
    /// Become descriptors 0, 1, 2 ...; at most [`MAX_CHILD_FDS`].
    pub(crate) fds: &'a [BorrowedFd<'a>],
    /// cgroup v2 directory to be born in.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Whether it gets a PID namespace of its own, for which one must be root.
    pub(crate) new_pid_namespace: bool,
}

/// A started program.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Its PID, in the caller's namespace.
    pub(crate) pid: u32,
    /// Its pidfd.
    pub(crate) pidfd: OwnedFd,
}

/// TUNSETIFF (include/uapi/linux/if_tun.h).
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// Makes a tap of an open `/dev/net/tun`: Ethernet frames, each after a virtio-net header. `%d` in the name becomes a
/// number that is free; the name that it got.
///
/// # Errors
/// What the ioctl says: EPERM without CAP_NET_ADMIN.
pub(crate) fn make_tap(file: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        },
    };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is, and the descriptor is open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = request.ifr_name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0);
    String::from_utf8(bytes.collect()).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Watches a descriptor.
///
/// # Errors
/// What epoll says: regular files cannot be watched; or outside of a runtime.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `OwnedFd` always gives the same descriptor, which stays open until the `AsyncFd`, its only owner,
    // has deregistered it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Starts the program.
///
/// # Errors
/// What clone3 says. A program that cannot be executed ends with status 127.
pub(crate) fn spawn(program: &Program<'_>) -> io::Result<Spawned> {
    // Everything that allocates is done before the clone.
    if program.fds.len() > MAX_CHILD_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let path = CString::new(program.path.as_os_str().as_bytes())?;
    let name = program.path.file_name().unwrap_or(program.path.as_os_str());
    let args = program.args.iter().map(|arg| CString::new(arg.as_bytes()));
    let args = std::iter::once(CString::new(name.as_bytes())).chain(args).collect::<Result<Vec<_>, _>>()?;
    let env = program.env.iter().map(|pair| CString::new(pair.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&args), pointers(&env));
    let fds: Vec<RawFd> = program.fds.iter().map(AsRawFd::as_raw_fd).collect();

    let namespaces = if program.new_pid_namespace { libc::CLONE_NEWPID } else { 0 };
    match clone3(namespaces, program.cgroup)? {
        Some(spawned) => Ok(spawned),
        // SAFETY: this is the child of the clone; every pointer was made before it and is still alive, and argv
        // and envp end with a null pointer.
        None => unsafe { become_program(&path, &argv, &envp, &fds) },
    }
}

/// Forks into new namespaces (CLONE_NEW*) and a cgroup. In the child there is nothing, and it may call nothing that is not
/// async-signal-safe: other threads of its parent may have held locks.
fn clone3(namespaces: libc::c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Spawned>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is a plain structure for which all zeroes are valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PIDFD | namespaces) as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: the arguments and what they point to live across the call. Without CLONE_VM the child has its own
    // copy of this process's memory and of its one calling thread, so it returns here on its own stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        0 => Ok(None),
        1.. => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Spawned { pid: u32::try_from(pid).map_err(io::Error::other)?, pidfd }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts a process that does nothing in a user namespace of its own, whose maps are still to be written. It ends with the calling
/// thread at the latest.
///
/// # Errors
/// What clone3 says.
pub(crate) fn spawn_in_user_namespace() -> io::Result<Spawned> {
    let parent = std::process::id();
    match clone3(libc::CLONE_NEWUSER, None)? {
        Some(spawned) => Ok(spawned),
        // SAFETY: plain system calls in the child of the clone, which does nothing else: it lets go of every descriptor that
        // somebody may wait for the end of, and waits for its own. A parent that ended before it could ask to be told of
        // that is not its parent any more.
        None => unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid().unsigned_abs() != parent {
                libc::_exit(1);
            }
            libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
            loop {
                libc::pause();
            }
        },
    }
}

/// Maps the ids of a detached mount as a user namespace does.
///
/// # Errors
/// What mount_setattr(2) says.
pub(crate) fn map_ids(mount: &OwnedFd, users: &OwnedFd) -> io::Result<()> {
    let userns_fd = u64::from(users.as_raw_fd().unsigned_abs());
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    // SAFETY: the descriptors are open, the path is a constant C string, and `attributes` is a mount_attr of the size that
    // is passed, alive for the call; the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread a root and working directory of its own.
///
/// # Errors
/// What unshare(2) says.
pub(crate) fn leave_working_directory() -> io::Result<()> {
    // SAFETY: the flag changes no memory and no descriptor table.
    if unsafe { libc::unshare(libc::CLONE_FS) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread a mount namespace, root and working directory of its own.
///
/// # Errors
/// What unshare(2) says.
pub(crate) fn leave_mount_namespace() -> io::Result<()> {
    // SAFETY: the flag changes no memory and no descriptor table.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves descriptors into place and executes the program; calls nothing that is not async-signal-safe.
///
/// # Safety
/// Only in a child that clone made; `argv` and `envp` hold pointers to live C strings and end with null.
unsafe fn become_program(
    path: &CString,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
    fds: &[RawFd],
) -> ! {
    // SAFETY: plain system calls on descriptors that the caller borrowed for the length of the clone. Sources
    // with low numbers are first copied out of the way, so that no move overwrites a later source. Signals are reset
    // because the parent's runtime may have blocked or caught some; execve resets the caught ones.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut sources = [0; MAX_CHILD_FDS];
        for (source, from) in sources.iter_mut().zip(fds) {
            let low = *from < MAX_CHILD_FDS as RawFd;
            *source = if low {
                libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, MAX_CHILD_FDS as libc::c_int)
            } else {
                *from
            };
        }
        for (to, source) in sources.iter().take(fds.len()).enumerate() {
            // dup2 clears close-on-exec on the copy.
            if libc::dup2(*source, to as RawFd) < 0 {
                libc::_exit(126);
            }
        }
        libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr());
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn run(path: &Path) -> (Option<i32>, Vec<u8>) {
        let (mine, theirs) = UnixStream::pair().unwrap();
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let fds = [null.as_fd(), null.as_fd(), theirs.as_fd(), theirs.as_fd()];
        let program =
            Program { path, args: &[], env: &[], fds: &fds, cgroup: None, new_pid_namespace: false };
        let child = spawn(&program).unwrap();
        drop(theirs);
        let mut output = Vec::new();
        let mut mine = mine;
        mine.read_to_end(&mut output).unwrap();
        let id = rustix::process::WaitId::PidFd(child.pidfd.as_fd());
        let status = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED).unwrap().unwrap();
        (status.exit_status(), output)
    }

    #[test]
    fn program_that_cannot_be_executed_ends_with_127() {
        assert_eq!(run(Path::new("/nonexistent/program")).0, Some(127));
    }

    #[test]
    fn child_has_its_control_socket_and_standard_descriptors_alone() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("probe");
        std::fs::write(
            &script,
            "#!/bin/sh\nfor n in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$n ] && echo $n >&3; done\ntrue\n",
        )
        .unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        let (status, output) = run(&script);
        assert_eq!(status, Some(0));
        // The shell keeps its script open at 10.
        assert_eq!(output, b"0\n1\n2\n3\n");
    }
}
