//! The bytes of a disk: files laid end to end.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::SECTOR;
use super::request::{ID_LEN, Limits, Range, Segment};
use crate::virtio::sys::GuestIoVec;

/// Written where a file system cannot zero a range by itself.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A disk that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No extents, or more bytes than a disk can have.
    #[error("disk {0} has no extents, or more than 2^63 bytes")]
    Capacity(String),
    /// An extent's length is 0 or no multiple of 512.
    #[error("extent {1} of disk {0} has a length that is no multiple of 512")]
    Length(String, usize),
    /// A file is shorter than its extent.
    #[error("the file of extent {1} of disk {0} is shorter than the extent")]
    TooShort(String, usize),
    /// A file's size cannot be found.
    #[error("the size of extent {1} of disk {0} cannot be found")]
    Size(String, usize, #[source] io::Error),
    /// The id does not fit into a GET_ID reply.
    #[error("disk id {0:?} is longer than 20 bytes")]
    Id(String),
}

struct Extent {
    file: File,
    /// First byte on the disk.
    start: u64,
    len: u64,
}

/// Files laid end to end, and how they may be used.
pub struct Disk {
    id: [u8; ID_LEN],
    extents: Vec<Extent>,
    capacity: u64,
    read_only: bool,
}

/// The part of a range that lies in one file.
struct Piece<'a> {
    file: &'a File,
    offset: u64,
    len: u64,
}

impl Disk {
    /// A disk of `extents` (file, bytes), in this order.
    ///
    /// # Errors
    /// [`DiskError`] names the extent that does not fit.
    pub fn new(id: &str, extents: Vec<(OwnedFd, u64)>, read_only: bool) -> Result<Self, DiskError> {
        let mut id_bytes = [0; ID_LEN];
        id_bytes
            .get_mut(..id.len())
            .ok_or_else(|| DiskError::Id(id.to_owned()))?
            .copy_from_slice(id.as_bytes());
        let mut disk = Self { id: id_bytes, extents: Vec::new(), capacity: 0, read_only };
        for (index, (file, len)) in extents.into_iter().enumerate() {
            if len == 0 || !len.is_multiple_of(SECTOR) {
                return Err(DiskError::Length(id.to_owned(), index));
            }
            let file = File::from(file);
            let size = (&file)
                .seek(SeekFrom::End(0))
                .map_err(|error| DiskError::Size(id.to_owned(), index, error))?;
            if size < len {
                return Err(DiskError::TooShort(id.to_owned(), index));
            }
            disk.extents.push(Extent { file, start: disk.capacity, len });
            disk.capacity = disk
                .capacity
                .checked_add(len)
                .filter(|sum| i64::try_from(*sum).is_ok())
                .ok_or_else(|| DiskError::Capacity(id.to_owned()))?;
        }
        if disk.capacity == 0 {
            return Err(DiskError::Capacity(id.to_owned()));
        }
        Ok(disk)
    }

    pub(super) fn id(&self) -> &[u8; ID_LEN] {
        &self.id
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { capacity: self.capacity, read_only: self.read_only }
    }

    /// Reads `range`, asking `buffers` for the guest memory of each part (offset in the range, length).
    pub(super) fn read<'m>(
        &self,
        range: Range,
        buffers: impl FnMut(usize, usize) -> Option<GuestIoVec<'m>>,
    ) -> io::Result<()> {
        self.transfer(range, buffers, |list, file, offset| list.read_at(file.as_fd(), offset))
    }

    /// Writes `range`, as [`Disk::read`] reads it.
    pub(super) fn write<'m>(
        &self,
        range: Range,
        buffers: impl FnMut(usize, usize) -> Option<GuestIoVec<'m>>,
    ) -> io::Result<()> {
        self.transfer(range, buffers, |list, file, offset| list.write_at(file.as_fd(), offset))
    }

    /// Makes every finished write durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.extents.iter().try_for_each(|extent| extent.file.sync_data())
    }

    /// Gives the space of a range back where the file system can.
    pub(super) fn discard(&self, segment: Segment) -> io::Result<()> {
        self.pieces(segment.range).try_for_each(|piece| piece.punch())
    }

    /// Makes a range read as zeroes.
    pub(super) fn write_zeroes(&self, segment: Segment) -> io::Result<()> {
        self.pieces(segment.range).try_for_each(|piece| piece.zero(segment.unmap))
    }

    fn transfer<'m>(
        &self,
        range: Range,
        mut buffers: impl FnMut(usize, usize) -> Option<GuestIoVec<'m>>,
        mut call: impl FnMut(&mut GuestIoVec<'m>, &File, u64) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut done = 0;
        for piece in self.pieces(range) {
            let len = usize::try_from(piece.len).map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut list = buffers(done, len).ok_or(io::ErrorKind::InvalidInput)?;
            let mut offset = piece.offset;
            while list.len() > 0 {
                let count = call(&mut list, piece.file, offset)?;
                if count == 0 {
                    // The file was cut short under us (S21).
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                list.advance(count);
                offset += count as u64;
            }
            done += len;
        }
        Ok(())
    }

    /// The parts of a range, which lies within the capacity.
    fn pieces(&self, range: Range) -> impl Iterator<Item = Piece<'_>> {
        let end = range.start + range.len;
        // An empty range would come out as an empty piece.
        let extents = if range.len == 0 { [].iter() } else { self.extents.iter() };
        let first = self.extents.partition_point(|extent| extent.start + extent.len <= range.start);
        extents.skip(first).take_while(move |extent| extent.start < end).map(move |extent| {
            let from = range.start.max(extent.start);
            let to = end.min(extent.start + extent.len);
            Piece { file: &extent.file, offset: from - extent.start, len: to - from }
        })
    }
}

impl Piece<'_> {
    fn punch(&self) -> io::Result<()> {
        self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE)
    }

    fn zero(&self, unmap: bool) -> io::Result<()> {
        let zero_range = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let outcome = if unmap { self.punch() } else { self.fallocate(zero_range) };
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.write_zeroes(),
            outcome => outcome,
        }
    }

    fn write_zeroes(&self) -> io::Result<()> {
        let mut done = 0;
        while done < self.len {
            let left = usize::try_from(self.len - done).unwrap_or(usize::MAX);
            let part = ZEROES.get(..left.min(ZEROES.len())).unwrap_or(&ZEROES);
            self.file.write_all_at(part, self.offset + done)?;
            done += part.len() as u64;
        }
        Ok(())
    }

    fn fallocate(&self, flags: FallocateFlags) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let offset = i64::try_from(self.offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let len = i64::try_from(self.len).map_err(|_| io::ErrorKind::InvalidInput)?;
        loop {
            match fallocate(self.file, flags, offset, len) {
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Err(io::ErrorKind::Unsupported.into()),
                outcome => return Ok(outcome?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(len: u64) -> OwnedFd {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file.into()
    }

    #[test]
    fn extents_that_do_not_fit_are_refused() {
        assert!(matches!(Disk::new("d", vec![], false), Err(DiskError::Capacity(_))));
        assert!(matches!(Disk::new("d", vec![(file(512), 0)], false), Err(DiskError::Length(_, 0))));
        assert!(matches!(Disk::new("d", vec![(file(512), 500)], false), Err(DiskError::Length(_, 0))));
        let extents = vec![(file(512), 512), (file(1000), 1024)];
        assert!(matches!(Disk::new("d", extents, false), Err(DiskError::TooShort(_, 1))));
        assert!(matches!(Disk::new(&"x".repeat(21), vec![], false), Err(DiskError::Id(_))));
    }

    proptest! {
        #[test]
        fn pieces_cover_a_range_once_and_in_order(
            lens in prop::collection::vec(1u64..8, 1..6), a in 0u64..50, b in 0u64..50,
        ) {
            let total: u64 = lens.iter().sum::<u64>() * SECTOR;
            let extents = lens.iter().map(|len| (file(len * SECTOR), len * SECTOR)).collect();
            let disk = Disk::new("d", extents, false).unwrap();
            let start = (a * SECTOR).min(total);
            let len = (b * SECTOR).min(total - start);
            let covered: u64 = disk.pieces(Range { start, len }).map(|piece| piece.len).sum();
            prop_assert_eq!(covered, len);
            for piece in disk.pieces(Range { start, len }) {
                prop_assert!(piece.len > 0);
            }
        }
    }
}
