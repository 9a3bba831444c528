//! The multiprocessor table (Intel MultiProcessor Specification 1.4): how a kernel without ACPI finds its
//! processors, the I/O APIC and the interrupt lines.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;

const SPEC_REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
const CPU_HAS_APIC: u32 = 1 << 9;
const CPU_HAS_FPU: u32 = 1;
const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTERNAL: u8 = 3;
const ISA_BUS: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;
const POINTER_BYTES: usize = 16;
const HEADER_BYTES: usize = 44;

/// The table does not fit where the kernel looks for it.
#[derive(Debug, thiserror::Error)]
#[error("the multiprocessor table could not be written to guest memory")]
pub struct MpTableError(#[source] vm_memory::GuestMemoryError);

/// Writes the floating pointer and the table for `vcpus` processors.
///
/// # Errors
/// [`MpTableError`] where guest memory ends below it.
pub fn write(memory: &GuestMemoryMmap, vcpus: u8) -> Result<(), MpTableError> {
    memory.write_slice(&bytes(vcpus), GuestAddress(layout::MP_TABLE)).map_err(MpTableError)
}

fn bytes(vcpus: u8) -> Vec<u8> {
    let (entries, body) = entries(vcpus);
    let mut table = Vec::with_capacity(POINTER_BYTES + HEADER_BYTES + body.len());
    table.extend(floating_pointer());
    table.extend(header(entries, &body));
    table.extend(body);
    table
}

fn floating_pointer() -> [u8; POINTER_BYTES] {
    let mut pointer = [0; POINTER_BYTES];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(layout::MP_TABLE as u32 + POINTER_BYTES as u32).to_le_bytes());
    pointer[8] = 1; // length in units of 16 bytes
    pointer[9] = SPEC_REVISION;
    pointer[10] = checksum(&pointer);
    pointer
}

fn header(entries: u16, body: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(b"PCMP");
    header[4..6].copy_from_slice(&((HEADER_BYTES + body.len()) as u16).to_le_bytes());
    header[6] = SPEC_REVISION;
    header[8..16].copy_from_slice(b"NACRE   ");
    header[16..28].copy_from_slice(b"VM          ");
    header[34..36].copy_from_slice(&entries.to_le_bytes());
    header[36..40].copy_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    let sum = checksum(&header).wrapping_add(checksum(body));
    header[7] = sum;
    header
}

fn entries(vcpus: u8) -> (u16, Vec<u8>) {
    let io_apic_id = vcpus;
    let mut body = Vec::new();
    let mut count = 0u16;
    for id in 0..vcpus {
        let flags = CPU_ENABLED | if id == 0 { CPU_BOOT } else { 0 };
        body.extend([ENTRY_PROCESSOR, id, APIC_VERSION, flags]);
        body.extend(0x600u32.to_le_bytes()); // signature: family 6; the kernel goes by CPUID
        body.extend((CPU_HAS_APIC | CPU_HAS_FPU).to_le_bytes());
        body.extend([0; 8]);
        count += 1;
    }
    body.extend([ENTRY_BUS, ISA_BUS]);
    body.extend(b"ISA   ");
    body.extend([ENTRY_IO_APIC, io_apic_id, APIC_VERSION, 1]);
    body.extend(layout::IO_APIC.to_le_bytes());
    count += 2;
    // Every line is an edge-triggered ISA interrupt on the pin of its number.
    for line in layout::SERIAL_LINE..=layout::LAST_SLOT_LINE {
        let line = line as u8;
        body.extend([ENTRY_IO_INTERRUPT, INTERRUPT_VECTORED, 0, 0, ISA_BUS, line, io_apic_id, line]);
        count += 1;
    }
    body.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTERNAL, 0, 0, ISA_BUS, 0, 0, 0]);
    body.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);
    count += 2;
    (count, body)
}

/// The byte that makes the sum of all zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocol::vm::MAX_VCPUS;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn both_checksums_are_zero() {
        let table = bytes(3);
        assert_eq!(sum(&table[..POINTER_BYTES]), 0);
        assert_eq!(sum(&table[POINTER_BYTES..]), 0);
    }

    #[test]
    fn length_and_count_match_the_entries() {
        let table = bytes(2);
        let length = u16::from_le_bytes([table[POINTER_BYTES + 4], table[POINTER_BYTES + 5]]) as usize;
        assert_eq!(length, table.len() - POINTER_BYTES);
        let mut rest = &table[POINTER_BYTES + HEADER_BYTES..];
        let mut seen = 0;
        while !rest.is_empty() {
            rest = &rest[if rest[0] == ENTRY_PROCESSOR { 20 } else { 8 }..];
            seen += 1;
        }
        let count = u16::from_le_bytes([table[POINTER_BYTES + 34], table[POINTER_BYTES + 35]]);
        assert_eq!(seen, count);
    }

    #[test]
    fn largest_machine_fits() {
        let room = (layout::MP_TABLE_END - layout::MP_TABLE) as usize;
        assert!(bytes(MAX_VCPUS).len() <= room);
    }
}
