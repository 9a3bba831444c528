//! Hand-made kernels: a few instructions in an ELF file, run in long mode with the first GiB mapped to itself.

use std::fs::File;
use std::io::{Seek, Write};

/// Where the code lies.
pub const BASE: u64 = 16 << 20;

/// `mov dx, 0x3f8; mov al, byte; out dx, al` for each byte.
pub fn print(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]);
    }
    code
}

/// `mov al, 0xfe; out 0x64, al`: pulls the reset line.
pub const RESET: [u8; 4] = [0xb0, 0xfe, 0xe6, 0x64];

/// `jmp $`
pub const SPIN: [u8; 2] = [0xeb, 0xfe];

/// `ud2`, which without an interrupt table is a triple fault.
pub const TRIPLE_FAULT: [u8; 2] = [0x0f, 0x0b];

/// An ELF file with this code.
pub fn kernel(code: &[u8]) -> File {
    const OFFSET: usize = 0x1000;
    let mut image = vec![0; OFFSET];
    image[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    image[16..20].copy_from_slice(&[2, 0, 62, 0]);
    image[24..32].copy_from_slice(&BASE.to_le_bytes());
    image[32..40].copy_from_slice(&64u64.to_le_bytes());
    image[54..58].copy_from_slice(&[56, 0, 1, 0]);
    image[64..68].copy_from_slice(&1u32.to_le_bytes());
    let len = code.len() as u64;
    for (field, value) in [(8, OFFSET as u64), (24, BASE), (32, len), (40, len)] {
        image[64 + field..64 + field + 8].copy_from_slice(&value.to_le_bytes());
    }
    image.extend(code);
    file(&image)
}

/// A file with these bytes.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}
