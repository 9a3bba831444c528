//! Guest memory: one sealed memory file, mapped shared, that costs nothing where the guest never wrote.
//!
//! This is one of the two modules outside `sys` that may be unsafe.

#![expect(unsafe_code, reason = "hints on mappings that safe code owns")]

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::FromRangesError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::arch::x86_64::layout;

/// Memory that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memory file could not be made.
    #[error("memory file could not be made")]
    Create(#[source] io::Error),
    /// It could not be given its size.
    #[error("memory file could not be made {0} bytes long")]
    Resize(u64, #[source] io::Error),
    /// It could not be sealed.
    #[error("memory file could not be sealed")]
    Seal(#[source] nix::Error),
    /// It could not be mapped.
    #[error("guest memory could not be mapped")]
    Map(#[source] FromRangesError),
    /// Two regions collide; the layout does not make such.
    #[error("guest memory regions could not be put together")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
    /// The host does not say how much of it is backed.
    #[error("resident memory could not be read")]
    Resident(#[source] io::Error),
}

/// How much memory a guest has, and how the hole below 4 GiB parts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(u64);

impl Size {
    /// So many MiB.
    pub const fn from_mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// All of it.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Bytes from address 0 on.
    pub const fn low_bytes(self) -> u64 {
        if self.0 < layout::HOLE_START { self.0 } else { layout::HOLE_START }
    }

    /// Bytes from 4 GiB on.
    pub const fn high_bytes(self) -> u64 {
        self.0 - self.low_bytes()
    }
}

/// The guest's memory.
#[derive(Debug, Clone)]
pub struct Memory {
    map: GuestMemoryMmap,
    file: Arc<File>,
    size: Size,
}

impl Memory {
    /// Makes and maps `size` bytes.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn new(size: Size) -> Result<Self, MemoryError> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"guest", flags).map_err(|errno| MemoryError::Create(errno.into()))?;
        let file = File::from(file);
        file.set_len(size.bytes()).map_err(|source| MemoryError::Resize(size.bytes(), source))?;
        // Whoever holds the file too (a vhost-user server) cannot make our accesses fault by cutting it.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(MemoryError::Seal)?;
        let file = Arc::new(file);
        let mut regions = vec![region(&file, 0, size.low_bytes(), 0)?];
        if size.high_bytes() > 0 {
            regions.push(region(&file, layout::HOLE_END, size.high_bytes(), size.low_bytes())?);
        }
        let map = GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Regions)?;
        Ok(Self { map, file, size })
    }

    /// The mapping.
    pub fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// How much there is.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Bytes that the host has backed with pages.
    ///
    /// # Errors
    /// [`MemoryError::Resident`].
    pub fn resident_bytes(&self) -> Result<u64, MemoryError> {
        use std::os::unix::fs::MetadataExt;
        let meta = self.file.metadata().map_err(MemoryError::Resident)?;
        Ok(meta.blocks() * 512)
    }

    /// Lets no core dump and no child process have the guest's memory.
    pub fn keep_private(&self) {
        for region in self.map.iter() {
            for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
                // SAFETY: address and length are those of a mapping that the region owns and that outlives this
                // call; neither advice changes its contents or whether it may be accessed.
                // A kernel that does not know the advice changes nothing, and core dumps are off anyway.
                let _ = unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, advice) };
            }
        }
    }
}

fn region(file: &Arc<File>, address: u64, len: u64, offset: u64) -> Result<GuestRegionMmap, MemoryError> {
    let backing = FileOffset::from_arc(Arc::clone(file), offset);
    GuestRegionMmap::from_range(GuestAddress(address), len as usize, Some(backing)).map_err(MemoryError::Map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn size_is_parted_at_the_hole() {
        assert_eq!(Size::from_mib(128).high_bytes(), 0);
        let size = Size::from_mib(5 * 1024);
        assert_eq!((size.low_bytes(), size.high_bytes()), (3 << 30, 2 << 30));
    }

    #[test]
    fn only_written_pages_are_resident() {
        let memory = Memory::new(Size::from_mib(4096)).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), 0);
        memory.map().write_obj(1u8, GuestAddress(0x5000)).unwrap();
        memory.map().write_obj(1u8, GuestAddress(layout::HOLE_END + 5)).unwrap();
        let resident = memory.resident_bytes().unwrap();
        assert!((1..=4 << 20).contains(&resident), "{resident}");
    }

    #[test]
    fn hole_is_no_memory() {
        let memory = Memory::new(Size::from_mib(4096)).unwrap();
        assert!(memory.map().write_obj(1u8, GuestAddress(layout::HOLE_START)).is_err());
        assert!(memory.map().write_obj(1u8, GuestAddress(layout::SLOTS_BASE)).is_err());
    }

    #[test]
    fn file_cannot_be_cut() {
        let memory = Memory::new(Size::from_mib(48)).unwrap();
        assert!(memory.file.set_len(0).is_err());
    }
}
