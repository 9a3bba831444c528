use super::*;
use crate::memory::{Sharing, Size};
use proptest::prelude::*;
use std::io::Write as _;
use vm_memory::Bytes;

const ENTRY: u64 = 0x100_0000;

/// A kernel of one page of code with a note; `change` spoils it.
fn image(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut image = vec![0; 0x2000];
    image[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(&mut image, 16, &2u16.to_le_bytes());
    put(&mut image, 18, &62u16.to_le_bytes());
    put(&mut image, 24, &ENTRY.to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 54, &56u16.to_le_bytes());
    put(&mut image, 56, &2u16.to_le_bytes());
    program_header(&mut image, 0, 1, [0x1000, ENTRY, 0x1000, 0x3000]);
    program_header(&mut image, 1, 4, [0x800, 0, 20, 20]);
    put(&mut image, 0x800, &4u32.to_le_bytes());
    put(&mut image, 0x804, &4u32.to_le_bytes());
    put(&mut image, 0x808, &18u32.to_le_bytes());
    put(&mut image, 0x80c, b"Xen\0");
    put(&mut image, 0x810, &(ENTRY as u32).to_le_bytes());
    image[0x1000..].fill(0x90);
    change(&mut image);
    image
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes a program header; the fields are offset, address, bytes in the file, bytes in memory.
fn program_header(image: &mut [u8], index: usize, kind: u32, fields: [u64; 4]) {
    let at = 64 + index * 56;
    put(image, at, &kind.to_le_bytes());
    for (place, value) in [8, 24, 32, 40].into_iter().zip(fields) {
        put(image, at + place, &value.to_le_bytes());
    }
}

fn file(image: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(image).unwrap();
    file
}

fn load(image: &[u8]) -> Result<Kernel, LoadError> {
    load_kernel(&Memory::new(Size::from_mib(48), Sharing::Private).unwrap(), &file(image))
}

#[test]
fn kernel_is_where_its_headers_say() {
    // Mapped and copied: the guest sees the same.
    for sharing in [Sharing::Private, Sharing::File] {
        let memory = Memory::new(Size::from_mib(48), sharing).unwrap();
        let kernel = load_kernel(&memory, &file(&image(|_| {}))).unwrap();
        assert_eq!(kernel, Kernel { entry: ENTRY, end: ENTRY + 0x3000 });
        assert_eq!(memory.map().read_obj::<u8>(GuestAddress(ENTRY + 0xfff)).unwrap(), 0x90);
        assert_eq!(memory.map().read_obj::<u8>(GuestAddress(ENTRY + 0x1000)).unwrap(), 0);
    }
}

#[test]
fn constant_pages_are_not_copied_until_the_guest_writes() {
    let memory = Memory::new(Size::from_mib(48), Sharing::Private).unwrap();
    let kernel = file(&image(|_| {}));
    load_kernel(&memory, &kernel).unwrap();
    // The host's file changes, and with it the page that is still shared.
    std::os::unix::fs::FileExt::write_all_at(&kernel, &[0x55], 0x1000).unwrap();
    assert_eq!(memory.map().read_obj::<u8>(GuestAddress(ENTRY)).unwrap(), 0x55);
    memory.map().write_obj(0x66u8, GuestAddress(ENTRY)).unwrap();
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&kernel, &mut byte, 0x1000).unwrap();
    assert_eq!(byte, [0x55]);
}

#[test]
fn other_files_are_no_kernels() {
    assert!(matches!(load(b"#!/bin/sh"), Err(LoadError::KernelSize(9))));
    assert!(matches!(load(&[0; 4096]), Err(LoadError::Header(_))));
    assert!(matches!(load(&image(|image| image[18] = 3)), Err(LoadError::Header(_))));
}

#[test]
fn entry_outside_the_kernel_is_refused() {
    let spoiled = image(|image| put(image, 24, &(ENTRY + 0x3000).to_le_bytes()));
    assert!(matches!(load(&spoiled), Err(LoadError::Entry(_))));
}

#[test]
fn v26_too_many_headers_are_refused() {
    let spoiled = image(|image| put(image, 56, &u16::MAX.to_le_bytes()));
    assert!(matches!(load(&spoiled), Err(LoadError::Header(_))));
}

#[test]
fn v26_segment_that_is_loaded_twice_is_refused() {
    let spoiled = image(|image| {
        put(image, 56, &3u16.to_le_bytes());
        program_header(image, 0, 1, [0, ENTRY, 0x2000, 0x2000]);
        program_header(image, 2, 1, [0, ENTRY, 0x2000, 0x2000]);
    });
    assert!(matches!(load(&spoiled), Err(LoadError::Header(_))));
}

#[test]
fn v26_segments_outside_the_file_or_memory_are_refused() {
    for (offset, address, file, memory) in [
        (0x1000, ENTRY, 0x1001, 0x1001),
        (u64::MAX, ENTRY, 2, 2),
        (0x1000, 0, 0x1000, 0x1000),
        (0x1000, u64::MAX, 0x1000, 0x1000),
        (0x1000, ENTRY, 0x1000, u64::MAX),
        (0x1000, layout::HOLE_START - 1, 0x1000, 0x1000),
    ] {
        let spoiled = image(|image| program_header(image, 0, 1, [offset, address, file, memory]));
        assert!(load(&spoiled).is_err(), "{offset:#x} {address:#x} {file:#x} {memory:#x}");
    }
}

#[test]
fn kernel_beyond_a_small_guest_is_refused() {
    let spoiled = image(|image| program_header(image, 0, 1, [0x1000, 64 << 20, 0x1000, 0x1000]));
    assert!(matches!(load(&spoiled), Err(LoadError::MapKernel(_))));
}

#[test]
fn initramfs_lies_at_the_top_of_low_memory() {
    let memory = Memory::new(Size::from_mib(48), Sharing::Private).unwrap();
    let kernel = Kernel { entry: ENTRY, end: ENTRY + 0x3000 };
    let place = load_initramfs(&memory, kernel, &[7; 5000]).unwrap();
    assert_eq!(place, Initramfs { address: (48 << 20) - 0x2000, size: 5000 });
    assert_eq!(memory.map().read_obj::<u8>(GuestAddress(u64::from(place.address) + 4999)).unwrap(), 7);
}

#[test]
fn initramfs_that_would_reach_into_the_kernel_is_refused() {
    let memory = Memory::new(Size::from_mib(48), Sharing::Private).unwrap();
    let kernel = Kernel { entry: ENTRY, end: (48 << 20) - 0x1000 };
    let refused = load_initramfs(&memory, kernel, &[7; 5000]);
    assert!(matches!(refused, Err(LoadError::InitramfsSize { size: 5000, .. })));
    assert!(matches!(load_initramfs(&memory, kernel, &[]), Err(LoadError::InitramfsEmpty)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn v26_spoiled_headers_never_panic(spoils in prop::collection::vec((0usize..0x820, any::<u8>()), 1..20)) {
        let spoiled = image(|image| spoils.iter().for_each(|(at, byte)| image[*at] = *byte));
        let _ = load(&spoiled);
    }
}
