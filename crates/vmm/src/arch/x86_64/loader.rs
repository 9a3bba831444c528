//! Puts kernel and initramfs into guest memory.
//!
//! linux-loader walks the ELF image; before it does, the headers are checked here, so that a crafted image costs
//! neither time nor memory beyond its own size (V26). The copy is by far the longest step of a start, so it is done
//! once, from the mapped file to its place.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::ops::Range;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::Elf;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::volatile_memory::Error as VolatileMemoryError;
use vm_memory::{GuestAddress, GuestMemoryBackend, ReadVolatile, VolatileSlice};

use super::boot_params::Initramfs;
use super::layout;
use crate::memory::{self, Memory};
use crate::sys::MappedFile;

/// Largest kernel image.
const MAX_KERNEL_BYTES: u64 = 256 << 20;
/// Most program headers; the kernel has five.
const MAX_PROGRAM_HEADERS: usize = 64;
/// Largest note segment.
const MAX_NOTE_BYTES: u64 = 64 << 10;
const PAGE: u64 = 4096;
/// `sizeof(struct page)`.
const PAGE_STRUCT_BYTES: u64 = 64;

/// An image that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("kernel cannot be read")]
    ReadKernel(#[source] io::Error),
    /// Its pages cannot be laid over guest memory.
    #[error("kernel cannot be mapped into guest memory")]
    MapKernel(#[source] io::Error),
    /// The file is too small or too large to be one.
    #[error("kernel has {0} bytes, which no kernel has")]
    KernelSize(u64),
    /// The headers are not those of a kernel.
    #[error("kernel is not an x86_64 ELF image: {0}")]
    Header(&'static str),
    /// linux-loader refused.
    #[error("kernel could not be loaded")]
    Kernel(#[source] linux_loader::loader::Error),
    /// The entry lies outside of what was loaded.
    #[error("kernel entry point {0:#x} lies outside the kernel")]
    Entry(u64),
    /// The initramfs cannot be read.
    #[error("initramfs cannot be read")]
    ReadInitramfs(#[source] io::Error),
    /// The initramfs is empty.
    #[error("initramfs is empty")]
    InitramfsEmpty,
    /// Not enough room above the kernel.
    #[error("initramfs of {size} bytes does not fit above the kernel's end at {kernel_end:#x}")]
    InitramfsSize {
        /// Its bytes.
        size: u64,
        /// First address behind the kernel.
        kernel_end: u64,
    },
    /// Guest memory refused the bytes.
    #[error("initramfs could not be written to guest memory")]
    WriteInitramfs(#[source] VolatileMemoryError),
    /// Guest memory has no such place.
    #[error("initramfs has no place in guest memory")]
    Place(#[source] vm_memory::GuestMemoryError),
}

/// A loaded kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// 64-bit entry.
    pub entry: u64,
    /// First address behind it, its BSS included.
    pub end: u64,
}

/// A kernel file as linux-loader reads it.
struct Image<'a> {
    bytes: Cursor<&'a [u8]>,
    /// Host addresses of guest memory that has the file's bytes already.
    mapped: Range<usize>,
}

impl Read for Image<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buffer)
    }
}

impl Seek for Image<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.bytes.seek(to)
    }
}

impl ReadVolatile for Image<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let rest = usize::try_from(self.bytes.position()).ok().and_then(|at| self.bytes.get_ref().get(at..));
        let rest = rest.unwrap_or_default();
        let start = buffer.ptr_guard_mut().as_ptr() as usize;
        let there = if self.mapped.contains(&start) { self.mapped.end - start } else { 0 };
        let there = there.min(buffer.len()).min(rest.len());
        let count = there + copy(&buffer.offset(there)?, &rest[there..])?;
        self.bytes.set_position(self.bytes.position() + count as u64);
        Ok(count)
    }
}

/// Copies in pieces for which the C library takes its vector loop. For long ones it takes a string instruction, which is no faster
/// on processors and runs byte by byte where one is emulated.
fn copy<B: BitmapSlice>(to: &VolatileSlice<'_, B>, from: &[u8]) -> Result<usize, VolatileMemoryError> {
    const PIECE: usize = 1024;
    let len = from.len().min(to.len());
    for (piece, at) in from[..len].chunks(PIECE).zip((0..).step_by(PIECE)) {
        to.offset(at)?.copy_from(piece);
    }
    Ok(len)
}

/// Loads an uncompressed ELF kernel.
///
/// # Errors
/// [`LoadError`].
pub fn load_kernel(memory: &Memory, file: &File) -> Result<Kernel, LoadError> {
    let image = MappedFile::new(file, MAX_KERNEL_BYTES).map_err(LoadError::ReadKernel)?;
    let image = image.bytes();
    let Layout { memory: Range { start, end }, constant } = check_headers(image)?;
    let mapped = match constant {
        Some(Constant { offset, memory: range }) => {
            // The image is dense behind its constant part, and that comes first.
            memory.expect_dense(range.end..end);
            memory.map_file(file, offset, range).map_err(LoadError::MapKernel)?
        }
        None => 0..0,
    };
    if mapped.is_empty() {
        memory.expect_dense(start..end);
    }
    let image = &mut Image { bytes: Cursor::new(image), mapped };
    let loaded = Elf::load(memory.map(), None, image, Some(GuestAddress(layout::HIGH_MEMORY)))
        .map_err(LoadError::Kernel)?;
    let entry = loaded.kernel_load.0;
    if !(layout::HIGH_MEMORY..loaded.kernel_end).contains(&entry) {
        return Err(LoadError::Entry(entry));
    }
    Ok(Kernel { entry, end: loaded.kernel_end })
}

/// Where a kernel will lie.
struct Layout {
    /// From its first segment's start to its last one's end.
    memory: Range<u64>,
    /// The segment that is not writable.
    constant: Option<Constant>,
}

/// Text and constants, of which a guest changes few pages as it boots.
struct Constant {
    /// In the file.
    offset: u64,
    /// In guest memory.
    memory: Range<u64>,
}

/// Checks what linux-loader trusts: the count of headers, the lengths, the addresses.
fn check_headers(image: &[u8]) -> Result<Layout, LoadError> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const PT_LOAD: u32 = 1;
    const PT_NOTE: u32 = 4;
    const PF_W: u32 = 2;
    let size = image.len() as u64;
    if size < HEADER as u64 || size > MAX_KERNEL_BYTES {
        return Err(LoadError::KernelSize(size));
    }
    if image.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) || field16(image, 18) != 62 {
        return Err(LoadError::Header("wrong magic bytes, class or machine"));
    }
    let count = usize::from(field16(image, 56));
    if count == 0 || count > MAX_PROGRAM_HEADERS || usize::from(field16(image, 54)) != PROGRAM_HEADER {
        return Err(LoadError::Header("wrong number or size of program headers"));
    }
    let table = usize::try_from(field64(image, 32))
        .ok()
        .and_then(|start| image.get(start..start.checked_add(count * PROGRAM_HEADER)?))
        .ok_or(LoadError::Header("program headers lie outside the file"))?;
    let mut loaded = 0u64;
    let (mut lowest, mut highest) = (u64::MAX, 0);
    let mut constant = None;
    for header in table.chunks_exact(PROGRAM_HEADER) {
        let (kind, offset) = (field32(header, 0), field64(header, 8));
        let (address, in_file, in_memory) = (field64(header, 24), field64(header, 32), field64(header, 40));
        if kind != PT_LOAD && kind != PT_NOTE {
            continue;
        }
        if offset.checked_add(in_file).is_none_or(|end| end > size) {
            return Err(LoadError::Header("a segment lies outside the file"));
        }
        if kind == PT_NOTE && in_file > MAX_NOTE_BYTES {
            return Err(LoadError::Header("a note segment is too long"));
        }
        if kind == PT_LOAD {
            loaded = loaded.saturating_add(in_file);
            let end = address.checked_add(in_memory.max(in_file)).filter(|end| *end <= layout::HOLE_START);
            let Some(end) = end.filter(|_| address >= layout::HIGH_MEMORY) else {
                return Err(LoadError::Header("a segment lies outside low extended memory"));
            };
            (lowest, highest) = (lowest.min(address), highest.max(end));
            if field32(header, 4) & PF_W == 0 && constant.is_none() {
                constant = Some(Constant { offset, memory: address..address + in_file });
            }
        }
    }
    // Each byte of the file is loaded once at most: no header can multiply the work.
    if loaded == 0 || loaded > size {
        return Err(LoadError::Header("segments overlap in the file"));
    }
    Ok(Layout { memory: lowest..highest, constant })
}

fn field16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|field| field.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn field32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn field64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Puts the initramfs at the top of low memory, clear of the kernel.
///
/// # Errors
/// [`LoadError`].
pub fn load_initramfs(memory: &Memory, kernel: Kernel, image: &[u8]) -> Result<Initramfs, LoadError> {
    let bytes = image.len() as u64;
    if bytes == 0 {
        return Err(LoadError::InitramfsEmpty);
    }
    let too_large = || LoadError::InitramfsSize { size: bytes, kernel_end: kernel.end };
    let address = memory.size().low_bytes().checked_sub(bytes).map(|address| address & !(PAGE - 1));
    let address = address.filter(|address| *address >= kernel.end).ok_or_else(too_large)?;
    memory.expect_dense(address..memory.size().low_bytes());
    expect_page_table(memory, address);
    let place = memory.map().get_slice(GuestAddress(address), image.len()).map_err(LoadError::Place)?;
    copy(&place, image).map_err(LoadError::WriteInitramfs)?;
    // Below 3 GiB, as the kernel's end and the memory's are.
    Ok(Initramfs { address: address as u32, size: bytes as u32 })
}

/// The kernel takes memory from the top, below the initramfs, and the first thing that it takes and fills is its table of
/// pages.
fn expect_page_table(memory: &Memory, initramfs: u64) {
    let size = memory.size();
    let top = if size.high_bytes() > 0 { layout::HOLE_END + size.high_bytes() } else { initramfs };
    let table = size.bytes() / PAGE * PAGE_STRUCT_BYTES + memory::HUGE_PAGE;
    memory.expect_dense(top.saturating_sub(table)..top);
}

#[cfg(test)]
mod tests;
