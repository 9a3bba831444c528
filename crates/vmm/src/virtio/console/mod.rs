//! The console (virtio 1.2, section 5.3): one port, output only.
//!
//! What the guest writes goes to a descriptor that never blocks: what does not fit is dropped and counted, so a reader
//! that sleeps costs neither memory nor the guest's time (S33). There is no input: containers' terminals are streams
//! of the vsock device.

mod device;
mod worker;

pub use device::Console;

/// VIRTIO_ID_CONSOLE.
const DEVICE_ID: u32 = 3;

/// Queues of port 0 (virtio 1.2, section 5.3.2). Linux fills the receive queue with
/// pages, to which nothing ever comes.
const TRANSMIT: usize = 1;
const QUEUE_SIZES: [u16; 2] = [4, 64];

/// Bytes taken from one request; the rest is dropped.
const MAX_REQUEST: usize = 64 * 1024;
