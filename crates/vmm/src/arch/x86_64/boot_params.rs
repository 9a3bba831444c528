//! What the kernel finds at its 64-bit entry (`Documentation/arch/x86/boot.rst`): the "zero page" with memory map,
//! command line and initramfs, and page tables that map the first GiB to itself.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;
use crate::memory;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// "A boot loader without a number of its own".
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;

const PRESENT_WRITABLE: u64 = 0x3;
const HUGE: u64 = 0x80;
const TABLE_ENTRIES: u64 = 512;

/// Boot information that guest memory has no room for.
#[derive(Debug, thiserror::Error)]
#[error("the boot information could not be written to guest memory")]
pub struct BootParamsError(#[source] vm_memory::GuestMemoryError);

/// Where the initramfs lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initramfs {
    /// Guest physical address, below 4 GiB.
    pub address: u32,
    /// Bytes.
    pub size: u32,
}

/// Writes everything that the kernel's entry relies on.
///
/// # Errors
/// [`BootParamsError`].
pub fn write(
    memory: &GuestMemoryMmap,
    size: memory::Size,
    command_line: &str,
    initramfs: Initramfs,
) -> Result<(), BootParamsError> {
    let mut text = command_line.as_bytes().to_vec();
    text.push(0);
    memory
        .write_slice(&text, GuestAddress(layout::COMMAND_LINE))
        .and_then(|()| memory.write_obj(zero_page(size, initramfs), GuestAddress(layout::ZERO_PAGE)))
        .and_then(|()| write_page_tables(memory))
        .map_err(BootParamsError)
}

fn zero_page(size: memory::Size, initramfs: Initramfs) -> boot_params {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = layout::COMMAND_LINE_MAX as u32;
    params.hdr.ramdisk_image = initramfs.address;
    params.hdr.ramdisk_size = initramfs.size;
    let map = memory_map(size);
    let mut table = params.e820_table;
    for (entry, (start, end)) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: *start, size: end - start, r#type: E820_RAM };
    }
    params.e820_table = table;
    params.e820_entries = map.len() as u8;
    params
}

/// Ranges of memory.
fn memory_map(size: memory::Size) -> Vec<(u64, u64)> {
    let mut map = vec![(0, layout::LOW_MEMORY_END), (layout::HIGH_MEMORY, size.low_bytes())];
    if size.high_bytes() > 0 {
        map.push((layout::HOLE_END, layout::HOLE_END + size.high_bytes()));
    }
    map
}

/// One table of each level, with 2 MiB pages: enough for the kernel, the zero page and the command line.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    let entry = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at));
    entry(layout::PAGE_TABLE_4, layout::PAGE_TABLE_3 | PRESENT_WRITABLE)?;
    entry(layout::PAGE_TABLE_3, layout::PAGE_TABLE_2 | PRESENT_WRITABLE)?;
    let mut table = [0u8; 8 * TABLE_ENTRIES as usize];
    for (place, page) in table.chunks_exact_mut(8).zip(0u64..) {
        place.copy_from_slice(&((page * memory::HUGE_PAGE) | PRESENT_WRITABLE | HUGE).to_le_bytes());
    }
    memory.write_slice(&table, GuestAddress(layout::PAGE_TABLE_2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::ByteValued;

    const INITRAMFS: Initramfs = Initramfs { address: 0x7ff_d000, size: 0x2800 };

    #[test]
    fn map_of_a_small_guest_ends_with_its_memory() {
        let map = memory_map(memory::Size::from_mib(128));
        assert_eq!(map, [(0, layout::LOW_MEMORY_END), (layout::HIGH_MEMORY, 128 << 20)]);
    }

    #[test]
    fn map_of_a_large_guest_leaves_the_hole_out() {
        let map = memory_map(memory::Size::from_mib(4096));
        assert_eq!(map[1].1, layout::HOLE_START);
        assert_eq!(map[2], (layout::HOLE_END, layout::HOLE_END + (1 << 30)));
    }

    #[test]
    fn fields_stand_where_the_boot_protocol_says() {
        let page = zero_page(memory::Size::from_mib(128), INITRAMFS);
        let bytes = page.as_slice();
        assert_eq!(bytes.len(), 4096);
        assert_eq!(
            (bytes[0x1e8], &bytes[0x1fe..0x200], &bytes[0x202..0x206]),
            (2, &[0x55, 0xaa][..], &b"HdrS"[..])
        );
        assert_eq!(bytes[0x210], 0xff);
        assert_eq!(bytes[0x218..0x21c], INITRAMFS.address.to_le_bytes());
        assert_eq!(bytes[0x21c..0x220], INITRAMFS.size.to_le_bytes());
        assert_eq!(bytes[0x228..0x22c], (layout::COMMAND_LINE as u32).to_le_bytes());
        assert_eq!(bytes[0x2d0 + 8..0x2d0 + 16], layout::LOW_MEMORY_END.to_le_bytes());
    }

    #[test]
    fn page_tables_map_addresses_to_themselves() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        write_page_tables(&memory).unwrap();
        let read = |at| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!(read(layout::PAGE_TABLE_4), layout::PAGE_TABLE_3 | 3);
        assert_eq!(read(layout::PAGE_TABLE_3), layout::PAGE_TABLE_2 | 3);
        assert_eq!(read(layout::PAGE_TABLE_2 + 8 * 511), (511 << 21) | 0x83);
    }
}
