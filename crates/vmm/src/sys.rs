//! System calls that no library wraps safely.

#![expect(unsafe_code, reason = "raw system calls behind a safe interface")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::slice;

use vmm_sys_util::eventfd::EventFd;

/// A file's bytes in memory, read-only.
///
/// The owner of the VM must not cut the file while it is mapped: that would end the process by SIGBUS.
#[derive(Debug)]
pub struct MappedFile {
    address: NonNull<libc::c_void>,
    len: usize,
}

impl MappedFile {
    /// Maps the whole file, at most `max` bytes of it.
    ///
    /// # Errors
    /// The file has no length, or more than `max`, or cannot be mapped.
    pub fn new(file: &File, max: u64) -> io::Result<Self> {
        let len = file.metadata()?.len();
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "file is empty"));
        }
        if len > max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("file has {len} bytes")));
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours; the descriptor is
        // open for the length of the call, and the result is checked.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                // Not populated: a read fault maps the pages around it too, for less than the kernel takes to
                // populate each by itself.
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(address) {
            Some(address) if address.as_ptr() != libc::MAP_FAILED => Ok(Self { address, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping covers `len` readable bytes until `drop`, and the slice borrows `self`. The file is private
        // to the VM's owner, who does not change it (see the type's documentation).
        unsafe { slice::from_raw_parts(self.address.as_ptr().cast(), self.len) }
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: address and length are those of the mapping made in `new`, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.address.as_ptr(), self.len) };
    }
}

/// Takes over a descriptor that the process was started with.
///
/// # Errors
/// No such descriptor is open.
pub fn take_inherited_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD reads a flag of the descriptor and touches no memory.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and `main` calls this once before anything else could own it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sets a flag of a descriptor that we own.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(owned)
}

/// Takes over descriptors that a message brought.
pub(crate) fn own_received_fds(fds: &[RawFd]) -> Vec<OwnedFd> {
    // SAFETY: recvmsg made these descriptors for us in this call; nobody else knows them.
    fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect()
}

/// Keeps the C library's allocator to one arena: each thread's own would cost address space, system calls and pages.
pub fn use_one_arena() {
    // SAFETY: mallopt sets a number in the allocator; no other thread is there yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Closes every descriptor from `first` on.
///
/// # Errors
/// The kernel is older than 5.9.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: called at the start of `main`, before this process owns any descriptor in the range.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes one capability out of the bounding set. `false`: the kernel has no such capability.
///
/// # Errors
/// The process may not.
pub(crate) fn drop_bounding_capability(capability: u32) -> io::Result<bool> {
    // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory.
    match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            error => Err(error),
        },
    }
}

/// Empties the permitted, effective and inheritable capability sets of the thread.
///
/// # Errors
/// The kernel refused.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: version 3 of capset reads a header and two records of three u32; both are there and outlive the call.
    match unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a signal to a thread of this process.
///
/// # Errors
/// There is no such thread.
pub(crate) fn signal_thread(tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: tgkill touches no memory; with our own process id it cannot reach another process.
    match unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The descriptor of an event.
pub(crate) fn borrow_event(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the event owns the descriptor and is borrowed for as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Whether the descriptor is a character device with the numbers.
///
/// # Errors
/// The descriptor has no status.
pub(crate) fn is_character_device(fd: BorrowedFd<'_>, major: u32, minor: u32) -> nix::Result<bool> {
    let stat = nix::sys::stat::fstat(fd)?;
    let kind = stat.st_mode & libc::S_IFMT;
    Ok(kind == libc::S_IFCHR && libc::major(stat.st_rdev) == major && libc::minor(stat.st_rdev) == minor)
}
