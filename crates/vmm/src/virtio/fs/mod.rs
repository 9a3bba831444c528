//! The file system device (virtio 1.2, section 5.11): front-end of a vhost-user server (`nacre-fs`).
//!
//! ```text
//! guest --kick--> ioeventfd ----------------------------> server, which works on guest memory by itself
//! guest <--irq--- worker (interrupt status) <--call event-- server
//! ```
//!
//! No request passes through this process: the server gets guest memory, the rings and their events. The worker is there
//! because virtio-mmio wants a bit in InterruptStatus with each interrupt, and to notice that the server died:
//! the device then asks for a reset, and no activation succeeds any more.
//!
//! The server is trusted with guest memory and with answering in time (it is our own process, jailed, and the VM's only
//! way to its files). What it answers is parsed by the `vhost` crate.

mod device;
mod session;
mod worker;

pub use device::{Fs, FsError};

/// VIRTIO_ID_FS.
const DEVICE_ID: u32 = 26;

/// High priority queue and one request queue (virtio 1.2, section 5.11.2). Linux sizes its largest request by the queue.
const QUEUE_SIZES: [u16; 2] = [128, 1024];

/// Bytes of a tag.
const TAG_LEN: usize = 36;

/// Tag and num_request_queues (virtio 1.2, section 5.11.4).
const CONFIG_LEN: usize = TAG_LEN + 4;
