//! Files with holes, in all four encodings of GNU tar.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;

use nacre_image::layer::{EntryError, ErofsError, LayerError, LayerLimits};

use crate::oracles::{Blob, packed_by_gnu_tar, unpacked_by_gnu_tar};
use crate::tarball::{Header, Tarball, seal};
use crate::tree::assert_same;

#[test]
fn sparse_archives_of_gnu_tar_are_read_as_gnu_tar_reads_them() {
    let script = r#"
        truncate -s 1M hole-only
        truncate -s 10M start-and-end; printf start | dd of=start-and-end conv=notrunc status=none
        printf end | dd of=start-and-end bs=1 seek=10485757 conv=notrunc status=none
        for n in $(seq 0 40); do printf "$n" | dd of=many bs=65536 seek=$((n * 3)) conv=notrunc status=none; done
        truncate -s 12345678 many
        printf data > tail; truncate -s 100001 tail
        seq 1 3000 > not-sparse
        ln many many-again
    "#;
    for version in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={version}");
        check_script(script, &["--format=posix", "--sparse", &version]);
    }
    check_script(script, &["--format=gnu", "--sparse"]);
}

fn check_script(script: &str, options: &[&str]) {
    let Some(tar) = packed_by_gnu_tar(script, options) else { return };
    let blob = Blob::of(&tar);
    let ours = blob.read_by_all();
    let theirs = unpacked_by_gnu_tar(&tar).expect("tar was there a moment ago");
    assert_same("GNU tar", &theirs, "blob", &ours);
    assert!(blob.summary.blob_len < 4 << 20, "holes cost {} bytes", blob.summary.blob_len);
}

/// An extended header that makes a file sparse, version 0.1.
fn sparse(size: u64, map: &[(u64, u64)], data: &[u8]) -> Tarball {
    let numbers: Vec<String> = map.iter().map(|(offset, len)| format!("{offset},{len}")).collect();
    Tarball::new()
        .pax(&[
            ("GNU.sparse.size", size.to_string().as_bytes()),
            ("GNU.sparse.map", numbers.join(",").as_bytes()),
        ])
        .file("s", data)
}

#[test]
fn a_tebibyte_of_holes_costs_little() {
    let size = 1u64 << 40;
    let tar = sparse(size, &[(0, 5), (size - 3, 3)], b"startend").finish();
    let blob = Blob::of(&tar);
    assert!(blob.summary.blob_len < 8 << 20);
    let on_disk = std::fs::metadata(blob.path()).unwrap().blocks() * 512;
    assert!(on_disk < 5 << 20, "{on_disk}");
    blob.with_kernel(|root| {
        let mut file = File::open(root.join("s")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        let mut read_at = |offset, len| {
            let mut bytes = vec![0; len];
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.read_exact(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(read_at(0, 6), b"start\0");
        assert_eq!(read_at(size / 2, 4), [0; 4]);
        assert_eq!(read_at(size - 4, 4), b"\0end");
    });
}

#[test]
fn bad_maps_are_refused() {
    let attempts = [
        sparse(100, &[(0, 10), (5, 10)], &[0; 20]),
        sparse(100, &[(50, 10), (0, 10)], &[0; 20]),
        sparse(100, &[(95, 10)], &[0; 10]),
        sparse(100, &[(u64::MAX, 10)], &[0; 10]),
        sparse(100, &[(0, 10)], &[0; 11]),
        sparse(100, &[(0, 10)], &[0; 9]),
        Tarball::new().pax(&[("GNU.sparse.map", b"0,1")]).file("s", b"x"),
        Tarball::new()
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")])
            .file("s", b"x"),
    ];
    for tar in attempts {
        let error = Blob::with_limits(&tar.finish()[..], &LayerLimits::default()).err().unwrap();
        assert!(matches!(error, LayerError::Entry { source: EntryError::Sparse(_), .. }), "{error:?}");
    }
}

#[test]
fn a_sparse_file_larger_than_the_limit_is_refused() {
    let tar = sparse(i64::MAX as u64, &[(0, 1)], b"x").finish();
    let error = Blob::with_limits(&tar[..], &LayerLimits::default()).err().unwrap();
    assert!(matches!(error, LayerError::Entry { source: EntryError::FileTooLarge { .. }, .. }));
}

#[test]
fn an_endless_chain_of_old_gnu_maps_is_refused() {
    let mut header = Header { gnu: true, ..Header::new(b'S', "s") }.record();
    header[482] = 1;
    seal(&mut header);
    // Each record continues the map with 21 ranges of one byte and says that another follows.
    let mut offset = 0u64;
    let mut tar = header.to_vec();
    for _ in 0..20_000 {
        let mut record = [0; 512];
        for pair in record[..504].chunks_exact_mut(24) {
            pair[..11].copy_from_slice(format!("{offset:011o}").as_bytes());
            pair[12..23].copy_from_slice(b"00000000001");
            offset += 2;
        }
        record[504] = 1;
        tar.extend_from_slice(&record);
    }
    let error = Blob::with_limits(&tar[..], &LayerLimits::default()).err().unwrap();
    assert!(matches!(error, LayerError::Entry { source: EntryError::Sparse(_), .. }), "{error:?}");
}

#[test]
fn many_small_entries_with_large_tables_are_refused() {
    // 1.5 KiB of archive for 8 MiB of table each.
    let one = sparse(16 << 40, &[(0, 1)], b"x").unfinished();
    let tar = one.repeat(100);
    let error = Blob::with_limits(&tar[..], &LayerLimits::default()).err().unwrap();
    assert!(matches!(error, LayerError::Blob(ErofsError::TablesTooLarge { .. })), "{error:?}");
}

#[test]
fn sizes_beyond_what_a_kernel_reads_are_refused() {
    let limits = LayerLimits { file_bytes: u64::MAX, blob_bytes: u64::MAX, ..LayerLimits::default() };
    let tar = sparse(u64::MAX, &[(u64::MAX - 1, 1)], b"x").finish();
    let error = Blob::with_limits(&tar[..], &limits).err().unwrap();
    assert!(matches!(error, LayerError::Entry { source: EntryError::FileTooLarge { .. }, .. }), "{error:?}");
}
