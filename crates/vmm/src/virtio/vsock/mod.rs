//! The vsock device (virtio 1.2, section 5.10): streams between the guest's ports and Unix sockets of the host.
//!
//! ```text
//!  host client --CONNECT p--> listener --> handshake --REQUEST--> guest port p
//!  socket of a host port <---REQUEST (once for each port)------- guest
//!
//!  guest tx queue -> worker -> muxer (by ports) -> connection -> sendmsg from guest memory
//!  guest rx queue <- receiver <- connection <- recvmsg into guest memory
//! ```
//!
//! | file | job |
//! |---|---|
//! | `packet` | header: parse and build |
//! | `credit` | flow control in both directions |
//! | `connection` | one stream: states, half-close, what is to be told to the guest |
//! | `handshake` | a host client that has not finished its `CONNECT` line |
//! | `muxer` | all streams, by ports and by socket |
//! | `receiver` | puts packets into the guest's rx buffers |
//! | `worker` | the thread: queues and sockets |
//!
//! Bytes are copied once, by the kernel, between guest memory and the socket. Only what a host reader does not take is
//! kept, and never more than the connection's credit, which the guest cannot raise (V21).

mod connection;
mod credit;
mod device;
mod handshake;
mod muxer;
mod packet;
mod receiver;
mod worker;

pub use device::Vsock;

use nacre_protocol::ports::{GUEST_CID, HOST_CID};

/// VIRTIO_ID_VSOCK.
const DEVICE_ID: u32 = 19;

/// Queues, by number (virtio 1.2, section 5.10.2). The event queue has no use before snapshots. Linux allocates two pages for
/// each entry of the rx queue when its driver starts.
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// Streams and handshakes together (S25); a power of two less the listener.
const MAX_CONNECTIONS: usize = 1023;

/// Clients that have not finished their `CONNECT` line; one more, and the oldest is dropped.
const MAX_HANDSHAKES: usize = 64;

/// Bytes that the guest may send ahead on a stream, kept here if the host does not read, by the streams that exist when
/// it begins: the first ones are the busy ones, and all together stay below 56 MiB.
const BUF_ALLOC: [(usize, u32); 3] = [(16, 1 << 20), (64, 128 << 10), (MAX_CONNECTIONS, 32 << 10)];

/// Resets that wait for rx buffers before the tx queue is left alone.
const MAX_RESETS: usize = 64;

/// First port of host clients; the ports of the agent lie below.
const FIRST_CLIENT_PORT: u32 = 1 << 30;
