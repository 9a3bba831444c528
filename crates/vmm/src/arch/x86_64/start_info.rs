//! The PVH boot information (`hvm_start_info` of the Xen project's public headers): memory map, command line and
//! initramfs.

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;
use crate::memory;

const MAGIC: u32 = 0x336e_c578;
const MEMORY_TYPE_RAM: u32 = 1;

/// Boot information that guest memory has no room for.
#[derive(Debug, thiserror::Error)]
#[error("the boot information could not be written to guest memory")]
pub struct StartInfoError(#[source] vm_memory::GuestMemoryError);

/// Where the initramfs lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initramfs {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Writes everything that the kernel finds through `rbx` at its PVH entry.
///
/// # Errors
/// [`StartInfoError`].
pub fn write(
    memory: &GuestMemoryMmap,
    size: memory::Size,
    command_line: &str,
    initramfs: Initramfs,
) -> Result<(), StartInfoError> {
    let map = memory_map(size);
    let module = hvm_modlist_entry { paddr: initramfs.address, size: initramfs.size, ..Default::default() };
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: 1,
        modlist_paddr: layout::MODULE_LIST,
        cmdline_paddr: layout::COMMAND_LINE,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut text = command_line.as_bytes().to_vec();
    text.push(0);
    memory
        .write_slice(&text, GuestAddress(layout::COMMAND_LINE))
        .and_then(|()| memory.write_obj(module, GuestAddress(layout::MODULE_LIST)))
        .and_then(|()| {
            map.iter().zip(0u64..).try_for_each(|(entry, index)| {
                let offset = index * size_of::<hvm_memmap_table_entry>() as u64;
                memory.write_obj(*entry, GuestAddress(layout::MEMORY_MAP + offset))
            })
        })
        .and_then(|()| memory.write_obj(info, GuestAddress(layout::START_INFO)))
        .map_err(StartInfoError)
}

fn memory_map(size: memory::Size) -> Vec<hvm_memmap_table_entry> {
    let ram = |addr, end: u64| hvm_memmap_table_entry {
        addr,
        size: end - addr,
        type_: MEMORY_TYPE_RAM,
        ..Default::default()
    };
    let mut map = vec![ram(0, layout::LOW_MEMORY_END), ram(layout::HIGH_MEMORY, size.low_bytes())];
    if size.high_bytes() > 0 {
        map.push(ram(layout::HOLE_END, layout::HOLE_END + size.high_bytes()));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_of_a_small_guest_ends_with_its_memory() {
        let map = memory_map(memory::Size::from_mib(128));
        assert_eq!(map.len(), 2);
        assert_eq!(map[1].addr + map[1].size, 128 << 20);
    }

    #[test]
    fn map_of_a_large_guest_leaves_the_hole_out() {
        let map = memory_map(memory::Size::from_mib(4096));
        assert_eq!(map[1].addr + map[1].size, layout::HOLE_START);
        assert_eq!((map[2].addr, map[2].size), (layout::HOLE_END, 1 << 30));
    }
}
