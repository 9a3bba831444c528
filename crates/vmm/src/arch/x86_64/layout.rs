//! Guest physical addresses.
//!
//! ```text
//! 0x0000_0000  memory: zero page, command line, page tables in the first 64 KiB
//! 0x000a_0000  not listed as memory; 0x000f_0000 multiprocessor table
//! 0x0010_0000  memory: kernel at its link address (16 MiB), initramfs at the top
//! 0xc000_0000  hole
//! 0xd000_0000  MMIO slots, 4 KiB each
//! 0xfec0_0000  I/O APIC          0xfee0_0000  local APIC
//! 0xfffb_c000  pages that KVM needs on Intel
//! 0x1_0000_0000 memory beyond 3 GiB
//! ```

use nacre_protocol::vm::MAX_SLOTS;

/// `boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables, from the top level down.
pub const PAGE_TABLE_4: u64 = 0x9000;
/// Third level.
pub const PAGE_TABLE_3: u64 = 0xa000;
/// Second level: 2 MiB pages.
pub const PAGE_TABLE_2: u64 = 0xb000;
/// Kernel command line.
pub const COMMAND_LINE: u64 = 0x8000;
/// Longest command line with its terminating zero (COMMAND_LINE_SIZE of the kernel).
pub const COMMAND_LINE_MAX: usize = 2048;

/// End of conventional memory: above it the kernel expects an EBDA and the video memory.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// Where the kernel looks for the multiprocessor table's floating pointer.
pub const MP_TABLE: u64 = 0xf_0000;
/// End of the range that the table may fill.
pub const MP_TABLE_END: u64 = 0x10_0000;
/// Begin of extended memory.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// First address without memory below 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// First address with memory again.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// First MMIO slot.
pub const SLOTS_BASE: u64 = 0xd000_0000;
/// Bytes of a slot: a page, of which the registers take the first 256 bytes, then the configuration space.
pub const SLOT_BYTES: u64 = 0x1000;
/// End of the last slot.
pub const SLOTS_END: u64 = SLOTS_BASE + MAX_SLOTS as u64 * SLOT_BYTES;

/// I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC of each vCPU.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM uses on Intel processors without unrestricted guest mode.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// One more.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Line of the serial port, as on every PC.
pub const SERIAL_LINE: u32 = 4;
/// First line of the MMIO slots.
pub const FIRST_SLOT_LINE: u32 = 5;
/// Last line: the in-kernel I/O APIC has 24 pins.
pub const LAST_SLOT_LINE: u32 = 23;

/// Address of a slot.
pub const fn slot_address(slot: usize) -> u64 {
    SLOTS_BASE + slot as u64 * SLOT_BYTES
}

/// Interrupt line of a slot. There are more slots than lines: the last slots share with the first.
pub const fn slot_line(slot: usize) -> u32 {
    let lines = LAST_SLOT_LINE - FIRST_SLOT_LINE + 1;
    FIRST_SLOT_LINE + (slot as u32) % lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_lie_in_the_hole_below_the_apics() {
        const { assert!(SLOTS_BASE >= HOLE_START && SLOTS_END <= IO_APIC as u64) };
    }

    #[test]
    fn slots_beyond_the_lines_share_them() {
        assert_eq!(slot_line(0), 5);
        assert_eq!(slot_line(18), 23);
        assert_eq!(slot_line(19), 5);
        assert!((0..MAX_SLOTS).all(|slot| (FIRST_SLOT_LINE..=LAST_SLOT_LINE).contains(&slot_line(slot))));
    }
}
