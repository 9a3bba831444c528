//! The few system calls of the base that no safe wrapper offers.
#![expect(unsafe_code, reason = "random ioctls, real-time signal numbers and AsyncFd have no safe wrapper")]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Most bytes of one [`add_entropy`].
pub(crate) const MAX_ENTROPY_LEN: usize = 512;

/// `struct rand_pool_info` (linux/random.h) with a fixed buffer.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; MAX_ENTROPY_LEN],
}

/// linux/random.h; the size in the number is that of the two leading ints.
const RNDADDENTROPY: libc::Ioctl = libc::_IOW::<[libc::c_int; 2]>(b'R' as u32, 0x03);

/// linux/random.h
const RNDRESEEDCRNG: libc::Ioctl = libc::_IO(b'R' as u32, 0x07);

const _: () = assert!(offset_of!(RandPoolInfo, buf) == 8);

/// Mixes `entropy` into the pool of `random` (an open /dev/random or /dev/urandom), credits it in full and
/// reseeds the generator at once. What is longer than [`MAX_ENTROPY_LEN`] is cut.
pub(crate) fn add_entropy(random: BorrowedFd<'_>, entropy: &[u8]) -> io::Result<()> {
    let len = entropy.len().min(MAX_ENTROPY_LEN);
    let mut info =
        RandPoolInfo { entropy_count: (len * 8) as libc::c_int, buf_size: len as libc::c_int, buf: [0; _] };
    info.buf[..len].copy_from_slice(&entropy[..len]);
    // SAFETY: RNDADDENTROPY reads a rand_pool_info: two ints and `buf_size` bytes after them. `info` has that
    // layout (checked above), buf_size is at most the length of `buf`, and it outlives the call.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: RNDRESEEDCRNG takes no argument.
    if unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A signal by number, real-time ones included; none outside 1 to 64.
pub(crate) fn signal(number: u32) -> Option<Signal> {
    let number = i32::try_from(number).ok().filter(|number| (1..=64).contains(number))?;
    // SAFETY: the number is not 0, and it is only ever sent; the restriction on libc's own signals concerns
    // those who install handlers or masks for them in this process.
    Some(unsafe { Signal::from_raw_unchecked(number) })
}

/// Opens /dev/null on whichever of the descriptors 0 to 2 is closed, so that no later descriptor gets such a
/// number and is taken for a standard stream.
pub(crate) fn fill_standard_fds() -> io::Result<()> {
    for number in 0..3 {
        // SAFETY: only asks whether the number is open; the borrow ends before anything can close it.
        let open = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).is_ok();
        if open {
            continue;
        }
        // The lowest free number is this one, since those below are open.
        let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
        std::mem::forget(null);
    }
    Ok(())
}

/// Registers a descriptor with the runtime.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, stays the same open file for as long as it lives, and its `as_raw_fd` always gives
    // that number; the AsyncFd owns it from here on.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
