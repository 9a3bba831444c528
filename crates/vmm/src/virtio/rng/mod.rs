//! The entropy device (virtio 1.2, section 5.4): one queue of writable buffers, filled by the host kernel's generator.
//!
//! The kernel writes straight into guest memory; nothing is opened. A request gets at most [`MAX_REQUEST`] bytes and
//! the device as a whole [`RATE`] bytes a second after a first [`BURST`]: a guest that asks for more waits (S34).

mod device;
mod limit;
mod worker;

pub use device::Rng;

/// VIRTIO_ID_ENTROPY.
const DEVICE_ID: u32 = 4;

const QUEUE_SIZE: u16 = 64;

/// Most bytes of one request; the driver sees the real length and asks again.
const MAX_REQUEST: u32 = 64 * 1024;

/// Bytes that the guest may take at once.
const BURST: u64 = 256 * 1024;

/// Bytes a second after the burst.
const RATE: u64 = 1024 * 1024;
