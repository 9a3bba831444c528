//! The block device (virtio 1.2, section 5.2): raw bytes of one or more files laid end to end.
//!
//! ```text
//! queue -> worker (chain) -> request (pure parse, bounds) -> disk (extents, preadv/pwritev on guest memory)
//! ```
//!
//! Bytes go straight between guest memory and the files. Nothing is mapped, so a file that somebody cuts short is a
//! short read and S_IOERR, never SIGBUS (S21); nothing is probed, so what the guest writes never becomes a format
//! (V07). One thread serves a disk, one request at a time: what is in flight is bounded by that (V15), and a reset
//! that waits for the thread leaves no buffer in use (V06).

mod device;
mod disk;
mod request;
mod worker;

pub use device::Blk;
pub use disk::{Disk, DiskError};

/// VIRTIO_ID_BLOCK.
const DEVICE_ID: u32 = 2;

/// Linux allocates as many requests for each disk.
const QUEUE_SIZE: u16 = 128;

/// Data buffers of one request: a chain also has header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Bytes of a sector, whatever the files beneath have.
const SECTOR: u64 = 512;

/// Bytes of the configuration space up to write_zeroes_may_unmap (virtio 1.2, section 5.2.4).
const CONFIG_LEN: usize = 60;

/// Bytes of a request's header.
const HEADER_LEN: usize = 16;

/// Bytes of one discard or write zeroes segment.
const SEGMENT_LEN: usize = 16;

/// Segments of one discard.
const MAX_DISCARD_SEGMENTS: u32 = 32;

/// Sectors of one discard segment (2 GiB).
const MAX_DISCARD_SECTORS: u32 = 1 << 22;

/// Segments of one write zeroes: few and short, as a file system without such a call has to write them.
const MAX_ZERO_SEGMENTS: u32 = 1;

/// Sectors of one write zeroes segment (64 MiB).
const MAX_ZERO_SECTORS: u32 = 1 << 17;
