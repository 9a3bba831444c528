//! The unsafe parts: raw descriptors that arrive from outside.
#![expect(unsafe_code, reason = "descriptors arrive as numbers")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nacre_protocol::fs::Submounts;

/// Takes over the descriptor that this process was started with, and closes all others but the standard streams.
/// Call it first, when nothing else has been opened.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    let above = fd.unsigned_abs() + 1;
    // SAFETY: the call takes three numbers; nothing in this process owns a descriptor above `fd` yet.
    if unsafe { libc::syscall(libc::SYS_close_range, above, u32::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is only asked about here, and fcntl reports a closed one as an error.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    // A copy with close-on-exec: the number itself stays as it was started, and nothing is executed later.
    borrowed.try_clone_to_owned()
}

/// Takes over a descriptor that recvmsg(2) has just made.
pub(crate) fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel made the descriptor for this message and nothing else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes a detached mount and all below it `nosuid`, `nodev` and, where asked, read-only. What is mounted below the
/// original later comes along only where that is asked.
pub(crate) fn restrict_mount(mount: &OwnedFd, read_only: bool, submounts: Submounts) -> io::Result<()> {
    let (of_all, of_top) = match (read_only, submounts) {
        (false, _) => (0, 0),
        (true, Submounts::AsShare) => (libc::MOUNT_ATTR_RDONLY, 0),
        (true, Submounts::AsHost | Submounts::Following) => (0, libc::MOUNT_ATTR_RDONLY),
    };
    let propagation = match submounts {
        Submounts::AsShare | Submounts::AsHost => libc::MS_PRIVATE,
        Submounts::Following => libc::MS_SLAVE,
    };
    let attr_set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | of_all;
    let all = libc::mount_attr { attr_set, attr_clr: 0, propagation, userns_fd: 0 };
    set_attributes(mount, libc::AT_RECURSIVE, all)?;
    let top = libc::mount_attr { attr_set: of_top, attr_clr: 0, propagation: 0, userns_fd: 0 };
    if of_top == 0 { Ok(()) } else { set_attributes(mount, 0, top) }
}

/// Makes a detached mount writable.
pub(crate) fn make_writable(mount: &OwnedFd) -> io::Result<()> {
    let (attr_clr, propagation) = (libc::MOUNT_ATTR_RDONLY, libc::MS_PRIVATE);
    let attributes = libc::mount_attr { attr_set: 0, attr_clr, propagation, userns_fd: 0 };
    set_attributes(mount, libc::AT_RECURSIVE, attributes)
}

/// Maps the ids of a detached mount, and of nothing below it, as a user namespace does.
pub(crate) fn map_ids(mount: &OwnedFd, user_namespace: &OwnedFd) -> io::Result<()> {
    let userns_fd = u64::from(user_namespace.as_raw_fd().unsigned_abs());
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    set_attributes(mount, 0, attributes)
}

/// mount_setattr(2) on a mount and, with `AT_RECURSIVE`, on all below it.
fn set_attributes(mount: &OwnedFd, flags: libc::c_int, attributes: libc::mount_attr) -> io::Result<()> {
    // SAFETY: the descriptor is open, the path is a constant C string, and `attributes` is a mount_attr of the size
    // that is passed, alive for the call; the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
