use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;
use virtio_bindings::virtio_net::VIRTIO_NET_F_CSUM;

use super::*;
use crate::virtio::net::{LINK_LEN, QUEUE_SIZES};
use crate::virtio::queue::BASE_FEATURES;
use crate::virtio::testing::{Driver, HIGH, LOW, MockQueue, NEXT, WRITE};
use crate::virtio::worker::settle;

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const LONGEST: usize = 1500 + LINK_LEN;

/// A device whose tap is a datagram socket: it keeps frames apart and cuts long ones, as a tap does.
struct Setup {
    driver: Driver,
    rx: MockQueue,
    tx: MockQueue,
    worker: NetWorker,
    poller: Poller,
    wire: UnixDatagram,
}

fn setup(features: u64, longest: usize) -> Setup {
    let (tap, wire) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    wire.set_nonblocking(true).unwrap();
    let mut driver = Driver::new();
    let [rx, tx] = QUEUE_SIZES.map(|size| driver.queue(size));
    let activation = driver.activation(BASE_FEATURES | features, &[&rx, &tx]);
    let poller = Poller::new().unwrap();
    let worker = NetWorker::new(Arc::new(tap.into()), longest, activation, &poller).unwrap();
    Setup { driver, rx, tx, worker, poller, wire }
}

impl Setup {
    fn run(&mut self) -> Next {
        settle(&self.poller, &mut self.worker).unwrap()
    }

    /// A frame comes in from outside.
    fn incoming(&self, frame: &[u8]) {
        let mut bytes = vec![0; HEADER_LEN];
        bytes.extend_from_slice(frame);
        self.wire.send(&bytes).unwrap();
    }

    /// Gives the device rx buffers of this length.
    fn fill_rx(&mut self, count: usize, len: usize) -> Vec<u64> {
        let places: Vec<u64> = (0..count).map(|_| self.driver.place(len)).collect();
        for place in &places {
            self.rx.add(&[(*place, len as u32, WRITE)]);
        }
        self.rx.kick();
        places
    }

    /// Sends a header and a frame in two buffers, and gives back what came out.
    fn outgoing(&mut self, header: &[u8], frame: &[u8]) -> Option<Vec<u8>> {
        let (header_at, frame_at) = (self.driver.put(header), self.driver.put(frame));
        self.tx.add(&[(header_at, header.len() as u32, 0), (frame_at, frame.len() as u32, 0)]);
        self.tx.kick();
        self.run();
        assert_eq!(self.tx.used().len(), 1);
        let mut out = vec![0; 100_000];
        let len = self.wire.recv(&mut out).ok()?;
        out.truncate(len);
        Some(out)
    }
}

#[test]
fn frame_of_the_guest_reaches_the_tap_with_a_clean_header() {
    let mut setup = setup(0, LONGEST);
    let out = setup.outgoing(&[0, 0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], &[7; 60]).unwrap();
    assert_eq!(out[..HEADER_LEN], [0; HEADER_LEN]);
    assert_eq!(out[HEADER_LEN..], [7; 60]);
    assert!(setup.driver.take_interrupt());
}

#[test]
fn s22_bad_frames_are_dropped_and_counted() {
    let mut setup = setup(1 << VIRTIO_NET_F_CSUM, LONGEST);
    assert_eq!(setup.outgoing(&[0; 12], &[7; 13]), None);
    assert_eq!(setup.outgoing(&[0; 5], &[]), None);
    assert_eq!(setup.outgoing(&[1, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0], &[7; 60]), None);
    assert_eq!(setup.outgoing(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[7; 60]), None);
    let whole = setup.driver.put(&[0; HEADER_LEN]);
    setup.tx.add(&[(whole, 12, 0), (HIGH.0, 70_000, 0)]);
    setup.tx.add(&[(whole, 12, 0), (u64::MAX - 255, 512, 0)]);
    setup.tx.add(&[(whole, 12, WRITE)]);
    setup.tx.kick();
    setup.run();
    assert_eq!(setup.tx.used().len(), 3);
    assert_eq!(setup.driver.errors(), 7);
    assert!(setup.outgoing(&[0; 12], &[7; 60]).is_some());
}

#[test]
fn frame_from_outside_reaches_the_guest() {
    let mut setup = setup(MERGEABLE, LONGEST);
    let places = setup.fill_rx(2, 2048);
    setup.incoming(&[5; 100]);
    setup.run();
    let used = setup.rx.used();
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].1 as usize, HEADER_LEN + 100);
    let bytes = setup.driver.get(places[0], HEADER_LEN + 100);
    assert_eq!(bytes[10..12], [1, 0]);
    assert_eq!(bytes[HEADER_LEN..], [5; 100]);
}

#[test]
fn long_frame_is_merged_from_several_buffers() {
    let mut setup = setup(MERGEABLE, LONGEST);
    let places = setup.fill_rx(20, 256);
    let frame: Vec<u8> = (0..1000u32).map(|n| n as u8).collect();
    setup.incoming(&frame);
    setup.incoming(&[9; 60]);
    setup.run();
    let used: Vec<_> = setup.rx.used().into_iter().map(|(_, len)| len as usize).collect();
    assert_eq!(used, [256, 256, 256, 244, 72]);
    let got: Vec<u8> = places[..4].iter().flat_map(|place| setup.driver.get(*place, 256)).collect();
    assert_eq!(got[10..12], [4, 0]);
    assert_eq!(got[HEADER_LEN..HEADER_LEN + 1000], frame);
    assert_eq!(setup.driver.get(places[4], 13)[12], 9);
}

#[test]
fn v02_s23_starved_reception_goes_on_with_the_first_buffers() {
    let mut setup = setup(MERGEABLE, LONGEST);
    setup.incoming(&[1; 1400]);
    setup.incoming(&[2; 60]);
    assert_eq!(setup.run(), Next::Wait);
    assert!(setup.rx.used().is_empty());
    // Too little for the frame: it waits, and is not lost.
    setup.fill_rx(2, 256);
    assert_eq!(setup.run(), Next::Wait);
    assert!(setup.rx.used().is_empty());
    setup.fill_rx(6, 256);
    setup.run();
    let used: Vec<_> = setup.rx.used().into_iter().map(|(_, len)| len as usize).collect();
    assert_eq!(used.iter().sum::<usize>(), 2 * HEADER_LEN + 1460);
    assert_eq!(used.last(), Some(&72));
}

#[test]
fn v02_frame_that_a_full_queue_cannot_hold_is_dropped() {
    let mut setup = setup(MERGEABLE, MAX_FRAME);
    for _ in 0..QUEUE_SIZES[0] {
        setup.rx.add(&[(0x9_0000, 12, WRITE)]);
    }
    setup.rx.kick();
    setup.incoming(&[1; 5000]);
    setup.incoming(&[2; 60]);
    setup.run();
    assert_eq!(setup.rx.used().len(), (HEADER_LEN + 60) / 12);
}

#[test]
fn frame_longer_than_the_only_buffer_is_dropped_without_merging() {
    let mut setup = setup(0, LONGEST);
    setup.fill_rx(3, 256);
    setup.incoming(&[1; 1000]);
    setup.incoming(&[2; 100]);
    setup.run();
    let used = setup.rx.used();
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].1 as usize, HEADER_LEN + 100);
}

#[test]
fn s23_unusable_buffers_come_back_empty_and_others_serve() {
    let mut setup = setup(MERGEABLE, LONGEST);
    setup.rx.add(&[(0x9_0000, 1, WRITE)]);
    setup.rx.add(&[(0x9_0000, 2048, 0)]);
    setup.rx.add(&[(LOW.1 as u64 - 8, 2048, WRITE)]);
    setup.fill_rx(2, 2048);
    setup.incoming(&[3; 60]);
    setup.run();
    let used: Vec<_> = setup.rx.used().into_iter().map(|(_, len)| len).collect();
    assert_eq!(used, [0, 0, 0, 72]);
    assert_eq!(setup.driver.errors(), 3);
}

#[test]
fn segmented_frames_of_64_kib_pass_in_both_directions() {
    let mut setup = setup(MERGEABLE, MAX_FRAME);
    setup.fill_rx(60, 1536);
    let frame: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
    setup.incoming(&frame);
    setup.run();
    let total: usize = setup.rx.used().into_iter().map(|(_, len)| len as usize).sum();
    assert_eq!(total, HEADER_LEN + 60_000);
    let out = setup.outgoing(&[0; 12], &frame).unwrap();
    assert_eq!(out[HEADER_LEN..], frame);
}

#[test]
fn v09_looping_chain_is_a_ring_error() {
    let mut setup = setup(0, LONGEST);
    setup.tx.set(0, 0x9000, 60, NEXT, 0);
    setup.tx.offer(0);
    assert!(setup.worker.turn().is_err());
}

proptest! {
    /// S40: random buffers in both queues and random frames: all tx chains come back, no frame is invented.
    #[test]
    fn s40_random_buffers_and_frames(
        merge in prop::bool::ANY,
        rx in prop::collection::vec(prop::collection::vec((any::<u32>(), 0u32..3000, prop::bool::ANY), 1..4), 0..20),
        tx in prop::collection::vec(prop::collection::vec((any::<u32>(), 0u32..3000, prop::bool::ANY), 1..4), 0..20),
        frames in prop::collection::vec(1usize..1500, 0..10),
    ) {
        let mut setup = setup(if merge { MERGEABLE } else { 0 }, LONGEST);
        let buffers = |chain: &[(u32, u32, bool)]| -> Vec<_> {
            let flags = |write: bool| if write { WRITE } else { 0 };
            chain.iter().map(|(addr, len, write)| (0x4_0000 + u64::from(*addr) % 0x30_0000, *len, flags(*write))).collect()
        };
        for chain in &rx {
            setup.rx.add(&buffers(chain));
        }
        for chain in &tx {
            setup.tx.add(&buffers(chain));
        }
        for len in &frames {
            setup.incoming(&vec![1; *len]);
        }
        setup.tx.kick();
        setup.rx.kick();
        prop_assert_eq!(setup.run(), Next::Wait);
        prop_assert_eq!(setup.tx.used().len(), tx.len());
        let got: usize = setup.rx.used().into_iter().map(|(_, len)| len as usize).sum();
        prop_assert!(got <= frames.iter().map(|len| len + HEADER_LEN).sum());
    }
}
