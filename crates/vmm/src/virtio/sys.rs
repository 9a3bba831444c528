//! System calls that move bytes straight between guest memory and a descriptor.
//!
//! Owns the audit surface of the devices' data path: no other file of a device has unsafe code. [`GuestIoVec`]
//! keeps raw host addresses of guest memory, and they never leave this file.
#![expect(
    unsafe_code,
    reason = "vectored I/O on guest memory has no safe form: a guest's bytes are never a slice"
)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

/// Buffers that one call takes at most (IOV_MAX of Linux). Chains are shorter, several chains may not be.
const MAX_BUFFERS: usize = 1024;

/// A list of buffers in guest memory for one vectored call.
pub(crate) struct GuestIoVec<'m> {
    buffers: Vec<libc::iovec>,
    len: usize,
    lifetime: PhantomData<&'m GuestMemoryMmap>,
}

impl<'m> GuestIoVec<'m> {
    /// An empty list with room for `capacity` buffers.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { buffers: Vec::with_capacity(capacity), len: 0, lifetime: PhantomData }
    }

    /// Bytes in all buffers.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds `len` bytes of guest memory at `addr`; false, and nothing added, where they do not lie within one region
    /// or the list is full.
    #[must_use]
    pub(crate) fn push(&mut self, memory: &'m GuestMemoryMmap, addr: GuestAddress, len: usize) -> bool {
        if len == 0 {
            return true;
        }
        let Ok(slice) = GuestMemoryBackend::get_slice(memory, addr, len) else { return false };
        self.push_slice(&slice)
    }

    fn push_slice(&mut self, slice: &VolatileSlice<'m, ()>) -> bool {
        let Some(total) = self.len.checked_add(slice.len()) else { return false };
        if self.buffers.len() >= MAX_BUFFERS {
            return false;
        }
        self.len = total;
        self.buffers
            .push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
        true
    }

    /// Adds all of `pieces` (address, length), or nothing.
    #[must_use]
    pub(crate) fn push_all(
        &mut self,
        memory: &'m GuestMemoryMmap,
        mut pieces: impl Iterator<Item = (GuestAddress, usize)>,
    ) -> bool {
        let (count, len) = (self.buffers.len(), self.len);
        let whole = pieces.all(|(addr, len)| self.push(memory, addr, len));
        if !whole {
            self.buffers.truncate(count);
            self.len = len;
        }
        whole
    }

    /// Drops the first `count` bytes.
    pub(crate) fn advance(&mut self, mut count: usize) {
        count = count.min(self.len);
        self.len -= count;
        let mut gone = 0;
        for buffer in &mut self.buffers {
            if count < buffer.iov_len {
                // SAFETY: count < iov_len, so the new base lies within the same buffer.
                buffer.iov_base = unsafe { buffer.iov_base.cast::<u8>().add(count) }.cast();
                buffer.iov_len -= count;
                break;
            }
            count -= buffer.iov_len;
            gone += 1;
        }
        self.buffers.drain(..gone);
    }

    /// Copies the bytes out piece by piece, for what a descriptor cannot take now.
    pub(crate) fn copy_out(&self, mut take: impl FnMut(&[u8])) {
        let mut piece = [0u8; 4096];
        for buffer in &self.buffers {
            let mut done = 0;
            while done < buffer.iov_len {
                let count = piece.len().min(buffer.iov_len - done);
                // SAFETY: done + count <= iov_len of a buffer that lives for 'm (regions stay mapped while the memory
                // is borrowed) and does not overlap `piece`. The guest may write
                // to the source meanwhile: any byte value is valid, and the copy alone is used afterwards.
                unsafe {
                    let from = buffer.iov_base.cast::<u8>().add(done);
                    std::ptr::copy_nonoverlapping(from, piece.as_mut_ptr(), count);
                }
                take(piece.get(..count).unwrap_or_default());
                done += count;
            }
        }
    }

    /// Sends to a stream socket; never blocks and never raises SIGPIPE (S28).
    pub(crate) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let message = self.message();
        retry(|| {
            // SAFETY: the message points to self.buffers, which are valid for reads of iov_len bytes for 'm.
            unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) }
        })
    }

    /// Receives from a stream socket; never blocks.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut message = self.message();
        retry(|| {
            // SAFETY: the message points to self.buffers: guest memory, valid for writes of iov_len bytes for 'm. No
            // control buffer is given, so no descriptor can come in.
            unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) }
        })
    }

    /// Reads from a descriptor that has no position (tap, pipe).
    pub(crate) fn read(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        retry(|| {
            // SAFETY: the buffers are guest memory, valid for writes of iov_len bytes for 'm.
            unsafe { libc::readv(fd.as_raw_fd(), self.buffers.as_ptr(), self.count()) }
        })
    }

    /// Writes to a descriptor that has no position (tap, pipe).
    pub(crate) fn write(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        retry(|| {
            // SAFETY: the buffers are valid for reads of iov_len bytes for 'm.
            unsafe { libc::writev(fd.as_raw_fd(), self.buffers.as_ptr(), self.count()) }
        })
    }

    /// Writes host bytes and then the list, in one call, to a descriptor that has no position.
    pub(crate) fn write_after(mut self, first: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
        let first = libc::iovec { iov_base: first.as_ptr().cast_mut().cast(), iov_len: first.len() };
        self.buffers.insert(0, first);
        self.write(fd)
    }

    /// Reads from a file at `offset`.
    pub(crate) fn read_at(&mut self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        retry(|| {
            // SAFETY: the buffers are guest memory, valid for writes of iov_len bytes for 'm.
            unsafe { libc::preadv(file.as_raw_fd(), self.buffers.as_ptr(), self.count(), offset) }
        })
    }

    /// Writes to a file at `offset`.
    pub(crate) fn write_at(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = file_offset(offset)?;
        retry(|| {
            // SAFETY: the buffers are valid for reads of iov_len bytes for 'm.
            unsafe { libc::pwritev(file.as_raw_fd(), self.buffers.as_ptr(), self.count(), offset) }
        })
    }

    /// Fills the buffers with entropy from the kernel's generator.
    pub(crate) fn fill_random(&mut self) -> io::Result<usize> {
        let mut done = 0;
        for buffer in &self.buffers {
            let mut filled = 0;
            while filled < buffer.iov_len {
                filled += retry(|| {
                    // SAFETY: the range lies in a buffer of guest memory, valid for writes of iov_len bytes for 'm.
                    unsafe {
                        let at = buffer.iov_base.cast::<u8>().add(filled);
                        libc::getrandom(at.cast(), buffer.iov_len - filled, 0)
                    }
                })?;
            }
            done += filled;
        }
        Ok(done)
    }

    fn count(&self) -> libc::c_int {
        // At most MAX_BUFFERS and one.
        libc::c_int::try_from(self.buffers.len()).unwrap_or(libc::c_int::MAX)
    }

    fn message(&self) -> libc::msghdr {
        // SAFETY: msghdr is a C struct of integers and pointers, for which zeroes mean: absent.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.buffers.as_ptr().cast_mut();
        message.msg_iovlen = self.buffers.len();
        message
    }
}

/// Repeats a call that a signal interrupted.
fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The descriptor of an event, for as long as the event lives.
pub(crate) fn event_fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event`, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Tells the kernel that a range of privately mapped guest memory is not needed: its pages go back to the host, and
/// the next access sees what the mapping holds beneath (zeroes, or the template's page).
pub(crate) fn discard_private(memory: &GuestMemoryMmap, addr: GuestAddress, len: usize) -> io::Result<()> {
    let slice = GuestMemoryBackend::get_slice(memory, addr, len)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the slice is a mapped range of guest memory, of which the VMM holds no reference, only volatile
    // slices; losing its contents changes guest memory as a guest's write could.
    let status =
        unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), libc::MADV_DONTNEED) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets what the kernel may leave undone in the frames that a tap hands out (TUNSETOFFLOAD).
pub(crate) fn tap_set_offload(tap: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let status = unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD as libc::Ioctl, libc::c_ulong::from(flags))
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the size of the header before each frame of a tap (TUNSETVNETHDRSZ).
pub(crate) fn tap_set_header_size(tap: BorrowedFd<'_>, size: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives for the call.
    let status =
        unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ as libc::Ioctl, &raw const size) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use vm_memory::Bytes;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap()
    }

    #[test]
    fn v01_buffer_across_regions_or_past_the_end_is_refused() {
        let memory = memory();
        let mut list = GuestIoVec::with_capacity(1);
        assert!(!list.push(&memory, GuestAddress(0xfff), 2));
        assert!(!list.push(&memory, GuestAddress(0x1fff), 2));
        assert!(!list.push(&memory, GuestAddress(u64::MAX), 2));
        assert!(list.push(&memory, GuestAddress(0x1fff), 1));
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn pieces_are_added_all_or_none() {
        let memory = memory();
        let mut list = GuestIoVec::with_capacity(1);
        let (good, bad) = ((GuestAddress(0), 8), (GuestAddress(0x4000), 8));
        assert!(list.push_all(&memory, [good].into_iter()));
        assert!(!list.push_all(&memory, [good, bad].into_iter()));
        assert!(!list.push_all(&memory, std::iter::repeat_n(good, MAX_BUFFERS)));
        assert_eq!((list.len(), list.buffers.len()), (8, 1));
    }

    #[test]
    fn host_bytes_go_before_those_of_the_guest() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let memory = memory();
        memory.write_slice(b"guest", GuestAddress(0)).unwrap();
        let mut list = GuestIoVec::with_capacity(1);
        assert!(list.push(&memory, GuestAddress(0), 5));
        assert_eq!(list.write_after(b"host ", near.as_fd()).unwrap(), 10);
        let mut out = [0; 10];
        far.read_exact(&mut out).unwrap();
        assert_eq!(&out, b"host guest");
    }

    #[test]
    fn s28_send_to_a_closed_peer_is_an_error_not_a_signal() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let memory = memory();
        let mut list = GuestIoVec::with_capacity(1);
        assert!(list.push(&memory, GuestAddress(0), 10));
        assert_eq!(list.send(near.as_fd()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    proptest! {
        #[test]
        fn advance_cuts_what_it_says(
            lens in prop::collection::vec(0usize..40, 1..8), skip in 0usize..200,
        ) {
            let memory = memory();
            let bytes: Vec<u8> = (0..=255).collect();
            memory.write_slice(&bytes, GuestAddress(0)).unwrap();
            memory.write_slice(&bytes, GuestAddress(256)).unwrap();
            let mut list = GuestIoVec::with_capacity(lens.len());
            let mut at = 0;
            for len in &lens {
                prop_assert!(list.push(&memory, GuestAddress(at), *len));
                at += *len as u64;
            }
            let whole: Vec<u8> = (0..at).map(|n| n as u8).collect();
            list.advance(skip);
            let mut copy = Vec::new();
            list.copy_out(|bytes| copy.extend_from_slice(bytes));
            let expected: Vec<u8> = whole.into_iter().skip(skip).collect();
            prop_assert_eq!(list.len(), expected.len());
            prop_assert_eq!(copy, expected);
        }
    }
}
