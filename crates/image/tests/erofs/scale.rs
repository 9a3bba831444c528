//! A million entries: memory, time and names.

use std::io::{self, Read};

use nacre_image::layer::LayerLimits;

use crate::oracles::Blob;
use crate::tarball::Header;

const FILES: u64 = 1_000_000;
const PER_DIR: u64 = 1000;

/// An archive that is made while it is read: only one record of it exists at a time.
struct Generated {
    next: u64,
    record: Vec<u8>,
}

impl Read for Generated {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.record.is_empty() {
            if self.next == FILES {
                return Ok(0);
            }
            let name = format!("directory-{:04}/file-{:07}", self.next / PER_DIR, self.next);
            let header = Header { mtime: 1_600_000_000 + self.next, ..Header::new(b'0', name) };
            self.record = header.record().to_vec();
            self.next += 1;
        }
        let len = self.record.len().min(out.len());
        out[..len].copy_from_slice(&self.record[..len]);
        self.record.drain(..len);
        Ok(len)
    }
}

/// The highest resident memory of this process so far.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_million_files_fit_in_bounded_memory() {
    let limits = LayerLimits { metadata_bytes: 100 << 20, ..LayerLimits::default() };
    let before = peak_rss_bytes();
    let blob = Blob::with_limits(Generated { next: 0, record: Vec::new() }, &limits).unwrap();
    let grown = peak_rss_bytes() - before;
    eprintln!("a million files: {} MiB of memory", grown >> 20);
    // Other tests of this process may run meanwhile; alone it is about 50 MiB.
    assert!(grown < 400 << 20, "{grown} bytes");
    assert_eq!(blob.summary.entries, FILES);
    blob.with_kernel(|root| {
        let count = std::fs::read_dir(root.join("directory-0999")).unwrap().count() as u64;
        assert_eq!(count, PER_DIR);
        assert!(root.join("directory-0500/file-0500123").exists());
        assert!(!root.join("directory-0500/file-0600123").exists());
    });
}

#[test]
fn more_names_than_memory_allows_is_an_error() {
    let limits = LayerLimits { metadata_bytes: 10 << 20, ..LayerLimits::default() };
    let error = Blob::with_limits(Generated { next: 0, record: Vec::new() }, &limits).err().unwrap();
    assert!(error.to_string().contains("cannot convert"), "{error}");
}
