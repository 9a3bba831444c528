//! The network device (virtio 1.2, section 5.1) on a tap.
//!
//! ```text
//! guest tx queue -> packet (header: parse, check) -> writev to the tap, frame straight from guest memory
//! guest rx queue <- receiver (buffers at hand)    <- readv from the tap, straight into guest memory
//! ```
//!
//! Headers of the guest are copied, checked against the frame and written from the copy, so the host's stack never sees
//! one that changes or points outside of its frame (S22). Reception stops only while the guest has no buffers and goes
//! on with the first one (V02, S23).

mod device;
mod packet;
mod receiver;
mod worker;

pub use device::{Net, NetError};

/// VIRTIO_ID_NET.
const DEVICE_ID: u32 = 1;

/// receiveq1 and transmitq1.
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Bytes of the configuration space up to mtu (virtio 1.2, section 5.1.4).
const CONFIG_LEN: usize = 12;

/// Bytes of the header before each frame; a device of version 1 always has num_buffers in it.
const HEADER_LEN: usize = 12;

/// Link header, with one VLAN tag.
const LINK_LEN: usize = 18;

/// Longest frame, with segmentation offload.
const MAX_FRAME: usize = 65535 + LINK_LEN;
