//! Guest memory, which costs nothing where the guest never wrote.
//!
//! | backing | when | a first touch costs the host |
//! |---|---|---|
//! | anonymous, private | nobody else needs it | one zeroed page |
//! | memory file, shared and sealed | a vhost-user server maps it too | two passes over the page, and the file's bookkeeping |
//!
//! Pages are small, so that an idle guest holds little, but for the ranges that a boot fills anyway: there
//! huge pages save a fault into the host for each 4 KiB (`docs/performance.md`).
//!
//! This is one of the two modules outside `sys` that may be unsafe.

#![expect(unsafe_code, reason = "guest memory is mapped, advised and examined by address")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::mmap::{FromRangesError, MmapRegion, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::arch::x86_64::layout;

/// Bytes of a huge page.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Pages examined at once for [`Memory::resident_bytes`].
const EXAMINED_PAGES: usize = 64 << 10;
const PAGE: usize = 4096;

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
    /// The memory file could not be mapped.
    #[error("guest memory could not be mapped")]
    MapFile(#[source] FromRangesError),
    /// No such range of addresses is free.
    #[error("{0} bytes of guest memory could not be mapped")]
    Map(u64, #[source] io::Error),
    /// The mapping is no region; the layout does not make such.
    #[error("guest memory region could not be made")]
    Region(#[source] MmapRegionError),
    /// A region wraps around the address space; the layout does not make such.
    #[error("guest memory region at {0:#x} is too long")]
    Wraps(u64),
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

/// Who may map the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// This process.
    Private,
    /// Whoever gets its file.
    File,
}

/// The guest's memory.
#[derive(Debug, Clone)]
pub struct Memory {
    map: GuestMemoryMmap,
    file: Option<Arc<File>>,
    size: Size,
}

impl Memory {
    /// Makes and maps `size` bytes. Private memory stays mapped until the process ends: KVM, vCPUs and device
    /// threads hold its address, and there is one machine in a process.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn new(size: Size, sharing: Sharing) -> Result<Self, MemoryError> {
        let file = match sharing {
            Sharing::Private => None,
            Sharing::File => Some(Arc::new(sealed_file(size)?)),
        };
        let mut regions = vec![region(file.as_ref(), 0, size.low_bytes(), 0)?];
        if size.high_bytes() > 0 {
            regions.push(region(file.as_ref(), layout::HOLE_END, size.high_bytes(), size.low_bytes())?);
        }
        let map = GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Regions)?;
        let memory = Self { map, file, size };
        memory.advise_all();
        Ok(memory)
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
        if let Some(file) = &self.file {
            return Ok(file.metadata().map_err(MemoryError::Resident)?.blocks() * 512);
        }
        let mut flags = vec![0u8; EXAMINED_PAGES];
        let mut resident = 0;
        for region in self.map.iter() {
            let len = region.len() as usize;
            for start in (0..len).step_by(EXAMINED_PAGES * PAGE) {
                let part = (len - start).min(EXAMINED_PAGES * PAGE);
                let flags = &mut flags[..part.div_ceil(PAGE)];
                let address = region.as_ptr().wrapping_add(start).cast();
                // SAFETY: the range lies in a mapping that is never unmapped, and `flags` has a byte for each
                // of its pages.
                if unsafe { libc::mincore(address, part, flags.as_mut_ptr()) } != 0 {
                    return Err(MemoryError::Resident(io::Error::last_os_error()));
                }
                resident += flags.iter().filter(|flag| **flag & 1 != 0).count() as u64;
            }
        }
        Ok(resident * PAGE as u64)
    }

    /// Backs each huge page that lies wholly in the range at once where it is touched: for ranges that the guest is
    /// about to fill.
    pub fn expect_dense(&self, range: Range<u64>) {
        let start = range.start.next_multiple_of(HUGE_PAGE);
        let end = range.end & !(HUGE_PAGE - 1);
        if start < end && self.file.is_none() {
            self.advise(GuestAddress(start), end - start, libc::MADV_HUGEPAGE);
        }
    }

    /// Lays pages of a file over guest memory, where it is private: the guest reads the host's cached pages, and gets
    /// its own copy of each that it writes. Gives the host addresses that now have the file's bytes: none for memory
    /// that is shared, and whole pages alone. The mapping stays as long as the memory.
    ///
    /// # Errors
    /// The range is not memory, or cannot be mapped.
    pub fn map_file(&self, file: &File, offset: u64, range: Range<u64>) -> io::Result<Range<usize>> {
        let whole = range.start..range.end & !(PAGE as u64 - 1);
        if self.file.is_some() || whole.is_empty() || !(offset | range.start).is_multiple_of(PAGE as u64) {
            return Ok(0..0);
        }
        let len = usize::try_from(whole.end - whole.start).map_err(io::Error::other)?;
        let slice = self.map.get_slice(GuestAddress(whole.start), len).map_err(io::Error::other)?;
        let address = slice.ptr_guard_mut().as_ptr();
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the range lies within one mapping of ours, which nobody has a Rust reference into, and is replaced by
        // one of the same length, access and lifetime; the descriptor is open for the length of the call.
        let mapped = unsafe {
            libc::mmap(
                address.cast(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
            self.advise(GuestAddress(whole.start), len as u64, advice);
        }
        Ok(address as usize..address as usize + len)
    }

    /// Small pages, and nothing of the guest in core dumps or child processes.
    fn advise_all(&self) {
        for region in self.map.iter() {
            for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
                self.advise(region.start_addr(), region.len(), advice);
            }
        }
    }

    fn advise(&self, start: GuestAddress, len: u64, advice: libc::c_int) {
        let Ok(slice) = self.map.get_slice(start, len as usize) else { return };
        // SAFETY: the range is mapped, and none of the advices that this module gives changes its contents or
        // takes it away. Where the kernel does not know an advice, the guest runs all the same.
        let _ = unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), advice) };
    }
}

/// A file that nobody can cut: whoever maps it too cannot make our accesses fault.
fn sealed_file(size: Size) -> Result<File, MemoryError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create(c"guest", flags).map_err(|errno| MemoryError::Create(errno.into()))?;
    let file = File::from(file);
    file.set_len(size.bytes()).map_err(|source| MemoryError::Resize(size.bytes(), source))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(MemoryError::Seal)?;
    Ok(file)
}

fn region(
    file: Option<&Arc<File>>,
    address: u64,
    len: u64,
    offset: u64,
) -> Result<GuestRegionMmap, MemoryError> {
    match file {
        Some(file) => {
            let backing = FileOffset::from_arc(Arc::clone(file), offset);
            GuestRegionMmap::from_range(GuestAddress(address), len as usize, Some(backing))
                .map_err(MemoryError::MapFile)
        }
        None => GuestRegionMmap::new(private(len)?, GuestAddress(address)).ok_or(MemoryError::Wraps(address)),
    }
}

/// Maps anonymous memory so that its huge pages are the guest's huge pages.
fn private(len: u64) -> Result<MmapRegion, MemoryError> {
    const PROT: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
    const FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let fail = |error| MemoryError::Map(len, error);
    let (size, reserved) = usize::try_from(len)
        .ok()
        .and_then(|size| Some((size, size.checked_add(HUGE_PAGE as usize)?)))
        .ok_or_else(|| fail(io::ErrorKind::OutOfMemory.into()))?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours; the result is checked.
    let address = unsafe { libc::mmap(ptr::null_mut(), reserved, PROT, FLAGS, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(fail(io::Error::last_os_error()));
    }
    let start = address.cast::<u8>();
    let aligned = start.wrapping_add(start.align_offset(HUGE_PAGE as usize));
    // SAFETY: `aligned` is page-aligned, and from there on `size` bytes of the mapping above remain, which is never
    // unmapped.
    unsafe { MmapRegion::build_raw(aligned, size, PROT, FLAGS) }.map_err(MemoryError::Region)
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

    fn only_written_pages_are_resident(sharing: Sharing) {
        let memory = Memory::new(Size::from_mib(4096), sharing).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), 0);
        memory.map().write_obj(1u8, GuestAddress(0x5000)).unwrap();
        memory.map().write_obj(1u8, GuestAddress(layout::HOLE_END + 5)).unwrap();
        assert_eq!(memory.resident_bytes().unwrap(), 8192);
    }

    #[test]
    fn only_written_pages_of_private_memory_are_resident() {
        only_written_pages_are_resident(Sharing::Private);
    }

    #[test]
    fn only_written_pages_of_a_memory_file_are_resident() {
        only_written_pages_are_resident(Sharing::File);
    }

    #[test]
    fn hole_is_no_memory() {
        let memory = Memory::new(Size::from_mib(4096), Sharing::Private).unwrap();
        assert!(memory.map().write_obj(1u8, GuestAddress(layout::HOLE_START)).is_err());
        assert!(memory.map().write_obj(1u8, GuestAddress(layout::SLOTS_BASE)).is_err());
    }

    #[test]
    fn file_cannot_be_cut() {
        let memory = Memory::new(Size::from_mib(48), Sharing::File).unwrap();
        assert!(memory.file.unwrap().set_len(0).is_err());
    }

    #[test]
    fn file_over_memory_is_read_and_never_written() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 3 * PAGE]).unwrap();
        let memory = Memory::new(Size::from_mib(48), Sharing::Private).unwrap();
        // Two whole pages; the half one behind them stays memory.
        let mapped = memory.map_file(&file, PAGE as u64, 0x10_0000..0x10_0000 + 5 * PAGE as u64 / 2).unwrap();
        assert_eq!(mapped.len(), 2 * PAGE);
        let read = |at| memory.map().read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!((read(0x10_0000), read(0x10_1fff), read(0x10_2000)), (7, 7, 0));
        memory.map().write_obj(9u8, GuestAddress(0x10_0000)).unwrap();
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, PAGE as u64).unwrap();
        assert_eq!((read(0x10_0000), byte[0]), (9, 7));
    }

    #[test]
    fn shared_memory_takes_no_file() {
        let memory = Memory::new(Size::from_mib(48), Sharing::File).unwrap();
        let file = tempfile::tempfile().unwrap();
        assert!(memory.map_file(&file, 0, 0x10_0000..0x20_0000).unwrap().is_empty());
    }

    #[test]
    fn huge_pages_of_host_and_guest_coincide() {
        let memory = Memory::new(Size::from_mib(48), Sharing::Private).unwrap();
        let address = memory.map().get_host_address(GuestAddress(HUGE_PAGE)).unwrap();
        assert_eq!(address.align_offset(HUGE_PAGE as usize), 0);
    }
}
