//! What only an unsafe call can do: give a child a certain descriptor number.

#![expect(unsafe_code, reason = "descriptors are placed between fork and exec")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nacre_protocol::control::CONTROL_FD;

/// Makes the command start with `socket` at [`CONTROL_FD`].
pub(super) fn pass_control(command: &mut Command, socket: &OwnedFd) {
    // A copy that already has the number would keep close-on-exec: dup2 onto itself does nothing.
    // SAFETY: F_DUPFD_CLOEXEC takes two numbers and gives a new descriptor, that nobody else owns.
    let socket = unsafe {
        let copy = libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, CONTROL_FD + 1);
        assert!(copy > CONTROL_FD, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(copy)
    };
    let place = move || {
        // SAFETY: dup2 is async-signal-safe and takes two numbers.
        let done = unsafe { libc::dup2(socket.as_raw_fd(), CONTROL_FD) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure makes one async-signal-safe call and touches no memory of the parent's.
    unsafe { command.pre_exec(place) };
}
