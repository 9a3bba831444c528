use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use nacre_protocol::ports::CONTROL_PORT;
use proptest::prelude::*;

use super::*;
use crate::virtio::queue::BASE_FEATURES;
use crate::virtio::testing::{Driver, LOW, MockQueue, WRITE};
use crate::virtio::vsock::{MAX_CONNECTIONS, MAX_HANDSHAKES, MAX_RESETS, QUEUE_SIZES};
use crate::virtio::worker::settle;

mod hostile;
mod streams;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

/// Credit of the first streams.
const BUF_ALLOC: u32 = crate::virtio::vsock::BUF_ALLOC[0].1;

const NO_RECEIVE: u32 = 1;
const NO_SEND: u32 = 2;

/// A header as the guest's driver writes it.
#[derive(Debug, Clone, Copy)]
struct Wire {
    src_cid: u64,
    dst_cid: u64,
    guest_port: u32,
    host_port: u32,
    len: u32,
    kind: u16,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Wire {
    fn new(guest_port: u32, host_port: u32, op: u16) -> Self {
        Self {
            src_cid: 3,
            dst_cid: 2,
            guest_port,
            host_port,
            len: 0,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.src_cid.to_le_bytes());
        out.extend(self.dst_cid.to_le_bytes());
        out.extend(self.guest_port.to_le_bytes());
        out.extend(self.host_port.to_le_bytes());
        out.extend(self.len.to_le_bytes());
        out.extend(self.kind.to_le_bytes());
        out.extend(self.op.to_le_bytes());
        out.extend(self.flags.to_le_bytes());
        out.extend(self.buf_alloc.to_le_bytes());
        out.extend(self.fwd_cnt.to_le_bytes());
        out
    }
}

/// A packet that the guest got.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    op: u16,
    guest_port: u32,
    host_port: u32,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
    payload: Vec<u8>,
}

/// Room for payload in each rx buffer.
const RX_ROOM: usize = 256;

struct Guest {
    driver: Driver,
    rx: MockQueue,
    tx: MockQueue,
    worker: VsockWorker,
    poller: Poller,
    client_path: tempfile::TempDir,
    /// The shim's end of the control port.
    control: UnixStream,
    rx_buffers: HashMap<u16, u64>,
    tx_place: u64,
}

impl Guest {
    fn new() -> Self {
        let client_path = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(client_path.path().join("s")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (control, near) = UnixStream::pair().unwrap();
        let host = Host { listener, ports: HashMap::from([(CONTROL_PORT, near)]) };
        let mut driver = Driver::new();
        let (rx, tx) = (driver.queue(QUEUE_SIZES[0]), driver.queue(QUEUE_SIZES[1]));
        let event = driver.queue(QUEUE_SIZES[2]);
        let poller = Poller::new().unwrap();
        let activation = driver.activation(BASE_FEATURES, &[&rx, &tx, &event]);
        let worker = VsockWorker::new(host, activation, &poller).map_err(|(_, error)| error).unwrap();
        let tx_place = driver.place(128 * 1024);
        let rx_buffers = HashMap::new();
        Self { driver, rx, tx, worker, poller, client_path, control, rx_buffers, tx_place }
    }

    /// With rx buffers.
    fn with_buffers(count: usize) -> Self {
        let mut guest = Self::new();
        guest.fill_rx(count);
        guest
    }

    fn fill_rx(&mut self, count: usize) {
        for _ in 0..count {
            let at = self.driver.place(HEADER_LEN + RX_ROOM);
            let head = self.rx.add(&[(at, (HEADER_LEN + RX_ROOM) as u32, WRITE)]);
            self.rx_buffers.insert(head, at);
        }
        self.rx.kick();
    }

    /// Lets the device work until it waits for an event, or only for the time to tell of taken packets.
    fn run(&mut self) -> Next {
        settle(&self.poller, &mut self.worker).unwrap()
    }

    /// Queues a packet without running the device.
    fn queue(&mut self, wire: Wire, payload: &[u8]) {
        let wire = Wire { len: wire.len.max(payload.len() as u32), ..wire };
        let mut bytes = wire.bytes();
        bytes.extend_from_slice(payload);
        let at = self.tx_place;
        self.driver.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
        self.tx.add(&[(at, bytes.len() as u32, 0)]);
        self.tx.kick();
    }

    fn send(&mut self, wire: Wire, payload: &[u8]) {
        self.queue(wire, payload);
        self.run();
        assert!(!self.tx.used().is_empty());
    }

    /// Packets that came, whose buffers go back to the device.
    fn take(&mut self) -> Vec<Got> {
        self.run();
        let mut packets = Vec::new();
        for (head, len) in self.rx.used() {
            let at = self.rx_buffers.remove(&head).unwrap();
            let bytes = self.driver.get(at, len as usize);
            let u32_at = |n: usize| u32::from_le_bytes(bytes[n..n + 4].try_into().unwrap());
            let u16_at = |n: usize| u16::from_le_bytes(bytes[n..n + 2].try_into().unwrap());
            assert_eq!(bytes[..16], [2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(u16_at(28), 1);
            assert_eq!(u32_at(24) as usize, bytes.len() - HEADER_LEN);
            packets.push(Got {
                op: u16_at(30),
                host_port: u32_at(16),
                guest_port: u32_at(20),
                flags: u32_at(32),
                buf_alloc: u32_at(36),
                fwd_cnt: u32_at(40),
                payload: bytes[HEADER_LEN..].to_vec(),
            });
            let head = self.rx.add(&[(at, (HEADER_LEN + RX_ROOM) as u32, WRITE)]);
            self.rx_buffers.insert(head, at);
            self.rx.kick();
        }
        packets
    }

    /// The one packet that came.
    fn take_one(&mut self) -> Got {
        let mut packets = self.take();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    fn ops(&mut self) -> Vec<u16> {
        self.take().into_iter().map(|packet| packet.op).collect()
    }

    fn client(&self, first: &[u8]) -> UnixStream {
        let mut client = UnixStream::connect(self.client_path.path().join("s")).unwrap();
        client.set_nonblocking(true).unwrap();
        client.write_all(first).unwrap();
        client
    }

    /// A stream from a host client to guest port 1025.
    fn stream(&mut self) -> (UnixStream, Wire) {
        let mut client = self.client(b"CONNECT 1025\n");
        let request = self.take_one();
        assert_eq!((request.op, request.guest_port), (REQUEST, 1025));
        let wire = Wire::new(1025, request.host_port, RESPONSE);
        self.send(wire, b"");
        assert_eq!(read(&mut client), format!("OK {}\n", request.host_port).as_bytes());
        (client, wire)
    }

    /// A stream of the guest to the control port.
    fn control_stream(&mut self) -> Wire {
        let wire = Wire::new(5000, CONTROL_PORT, REQUEST);
        self.send(wire, b"");
        assert_eq!(self.take_one().op, RESPONSE);
        self.control.set_nonblocking(true).unwrap();
        wire
    }

    fn connections(&self) -> usize {
        self.worker.muxer.counts().0
    }
}

impl Wire {
    fn op(self, op: u16) -> Self {
        Self { op, ..self }
    }

    fn flags(self, flags: u32) -> Self {
        Self { flags, ..self }
    }
}

/// What is there to read now.
fn read(client: &mut UnixStream) -> Vec<u8> {
    let mut out = vec![0; 1 << 20];
    match client.read(&mut out) {
        Ok(count) => {
            out.truncate(count);
            out
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

fn is_closed(client: &mut UnixStream) -> bool {
    let mut byte = [0];
    match client.read(&mut byte) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

use vm_memory::{Bytes, GuestAddress};
