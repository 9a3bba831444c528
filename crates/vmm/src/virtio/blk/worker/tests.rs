use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::*;
use crate::virtio::blk::request::{header, segment};
use crate::virtio::blk::{Blk, QUEUE_SIZE, SECTOR};
use crate::virtio::device::VirtioDevice;
use crate::virtio::queue::BASE_FEATURES;
use crate::virtio::testing::{Driver, LOW, MockQueue, NEXT, WRITE};

const OK: u8 = 0;
const IO_ERR: u8 = 1;
const UNSUPPORTED: u8 = 2;
const UNTOUCHED: u8 = 0xaa;

struct Setup {
    driver: Driver,
    mock: MockQueue,
    worker: BlkWorker,
    files: Vec<File>,
}

/// A disk of two extents of four sectors; sector n of the disk is full of bytes n + 1.
fn setup(read_only: bool) -> Setup {
    let files: Vec<File> = (0u8..2)
        .map(|index| {
            let file = tempfile::tempfile().unwrap();
            for sector in 0..4u8 {
                file.write_all_at(&[index * 4 + sector + 1; 512], u64::from(sector) * SECTOR).unwrap();
            }
            file
        })
        .collect();
    let extents = files.iter().map(|file| (file.try_clone().unwrap().into(), 4 * SECTOR)).collect();
    let disk = Disk::new("disk-7", extents, read_only).unwrap();
    let mut driver = Driver::new();
    let mock = driver.queue(QUEUE_SIZE);
    let activation = driver.activation(BASE_FEATURES, &[&mock]);
    let worker =
        BlkWorker::new(disk, activation, &Poller::new().unwrap()).map_err(|(_, error)| error).unwrap();
    Setup { driver, mock, worker, files }
}

impl Setup {
    /// Sends a request and gives back its status byte and the used length.
    fn send(&mut self, header: &[u8], data: &[(u64, u32, u16)]) -> (u8, u32) {
        let header_at = self.driver.put(header);
        let status_at = self.driver.put(&[UNTOUCHED]);
        let mut chain = vec![(header_at, header.len() as u32, 0)];
        chain.extend_from_slice(data);
        chain.push((status_at, 1, WRITE));
        let head = self.mock.add(&chain);
        self.worker.turn().unwrap();
        let used = self.mock.used();
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, head);
        (self.driver.get(status_at, 1)[0], used[0].1)
    }

    fn disk_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for file in &self.files {
            let mut part = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut part, 0).unwrap();
            bytes.extend(part);
        }
        bytes
    }
}

#[test]
fn read_spans_extents_and_buffers() {
    let mut setup = setup(true);
    let (first, second) = (setup.driver.place(700), setup.driver.place(836));
    let data = [(first, 700, WRITE), (second, 836, WRITE)];
    assert_eq!(setup.send(&header(VIRTIO_BLK_T_IN, 3), &data), (OK, 1537));
    let mut got = setup.driver.get(first, 700);
    got.extend(setup.driver.get(second, 836));
    let expected: Vec<u8> = [4u8, 5, 6].iter().flat_map(|byte| [*byte; 512]).collect();
    assert_eq!(got, expected);
    assert!(setup.driver.take_interrupt());
}

#[test]
fn write_spans_extents_and_flush_succeeds() {
    let mut setup = setup(false);
    let data = setup.driver.put(&[0x77; 1024]);
    assert_eq!(setup.send(&header(VIRTIO_BLK_T_OUT, 3), &[(data, 1024, 0)]), (OK, 1));
    assert_eq!(setup.send(&header(VIRTIO_BLK_T_FLUSH, 0), &[]), (OK, 1));
    let bytes = setup.disk_bytes();
    assert_eq!(bytes[3 * 512..5 * 512], [0x77; 1024]);
    assert_eq!((bytes[3 * 512 - 1], bytes[5 * 512]), (3, 6));
}

#[test]
fn get_id_is_padded_with_zeroes() {
    let mut setup = setup(true);
    let room = setup.driver.put(&[0xff; 20]);
    assert_eq!(setup.send(&header(VIRTIO_BLK_T_GET_ID, 0), &[(room, 20, WRITE)]), (OK, 21));
    assert_eq!(setup.driver.get(room, 20), *b"disk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn s20_read_only_disk_keeps_its_bytes() {
    let mut setup = setup(true);
    let before = setup.disk_bytes();
    let data = setup.driver.put(&[0x77; 512]);
    let range = setup.driver.put(&segment(0, 1, 0));
    assert_eq!(setup.send(&header(VIRTIO_BLK_T_OUT, 0), &[(data, 512, 0)]).0, IO_ERR);
    assert_eq!(setup.send(&header(VIRTIO_BLK_T_DISCARD, 0), &[(range, 16, 0)]).0, IO_ERR);
    assert_eq!(setup.send(&header(VIRTIO_BLK_T_WRITE_ZEROES, 0), &[(range, 16, 0)]).0, IO_ERR);
    assert_eq!(setup.disk_bytes(), before);
    assert_eq!(setup.driver.errors(), 3);
}

#[test]
fn discard_and_write_zeroes_clear_their_range_only() {
    for (kind, flags) in
        [(VIRTIO_BLK_T_DISCARD, 0), (VIRTIO_BLK_T_WRITE_ZEROES, 0), (VIRTIO_BLK_T_WRITE_ZEROES, 1)]
    {
        let mut setup = setup(false);
        let mut expected = setup.disk_bytes();
        expected[3 * 512..5 * 512].fill(0);
        let range = setup.driver.put(&segment(3, 2, flags));
        assert_eq!(setup.send(&header(kind, 0), &[(range, 16, 0)]).0, OK);
        assert_eq!(setup.disk_bytes(), expected);
    }
}

#[test]
fn s20_one_bad_segment_spoils_the_whole_discard() {
    let mut setup = setup(false);
    let before = setup.disk_bytes();
    let mut segments = segment(0, 1, 0).to_vec();
    segments.extend(segment(8, 1, 0));
    let range = setup.driver.put(&segments);
    assert_eq!(setup.send(&header(VIRTIO_BLK_T_DISCARD, 0), &[(range, 32, 0)]).0, IO_ERR);
    assert_eq!(setup.disk_bytes(), before);
}

#[test]
fn v11_io_past_the_capacity_is_an_error() {
    let mut setup = setup(false);
    let before = setup.disk_bytes();
    let data = setup.driver.put(&[0x77; 1024]);
    for sector in [7, 8, u64::MAX] {
        assert_eq!(setup.send(&header(VIRTIO_BLK_T_OUT, sector), &[(data, 1024, 0)]).0, IO_ERR);
        assert_eq!(setup.send(&header(VIRTIO_BLK_T_IN, sector), &[(data, 1024, WRITE)]).0, IO_ERR);
    }
    assert_eq!(setup.disk_bytes(), before);
}

#[test]
fn v17_scsi_passthrough_is_unsupported() {
    let mut setup = setup(false);
    assert_eq!(setup.send(&header(2, 0), &[(0x9000, 96, WRITE)]).0, UNSUPPORTED);
}

#[test]
fn s21_truncated_file_is_an_error_then_works_again() {
    let mut setup = setup(true);
    let room = setup.driver.place(512);
    setup.files[0].set_len(600).unwrap();
    assert_eq!(setup.send(&header(VIRTIO_BLK_T_IN, 1), &[(room, 512, WRITE)]).0, IO_ERR);
    setup.files[0].set_len(4 * SECTOR).unwrap();
    assert_eq!(setup.send(&header(VIRTIO_BLK_T_IN, 1), &[(room, 512, WRITE)]).0, OK);
}

#[test]
fn v07_image_header_in_sector_0_is_only_bytes() {
    let mut setup = setup(false);
    let mut image = vec![0; 512];
    image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    let data = setup.driver.put(&image);
    assert_eq!(setup.send(&header(VIRTIO_BLK_T_OUT, 0), &[(data, 512, 0)]).0, OK);
    let extents = setup.files.iter().map(|file| (file.try_clone().unwrap().into(), 4 * SECTOR)).collect();
    let again = Disk::new("disk-7", extents, false).unwrap();
    assert_eq!(again.limits().capacity, 8 * SECTOR);
    assert_eq!(setup.disk_bytes()[..512], image);
}

#[test]
fn s19_header_split_over_sixteen_descriptors_is_served() {
    let mut setup = setup(true);
    let head_at = setup.driver.put(&header(VIRTIO_BLK_T_IN, 2));
    let (room, status) = (setup.driver.place(512), setup.driver.put(&[UNTOUCHED]));
    let mut chain: Vec<_> = (0..16).map(|n| (head_at + n, 1, 0)).collect();
    chain.extend([(room, 512, WRITE), (status, 1, WRITE)]);
    setup.mock.add(&chain);
    setup.worker.turn().unwrap();
    assert_eq!(setup.mock.used()[0].1, 513);
    assert_eq!(setup.driver.get(status, 1), [OK]);
    assert_eq!(setup.driver.get(room, 512), [3; 512]);
}

#[test]
fn s19_status_byte_within_the_data_buffer_is_served() {
    let mut setup = setup(true);
    let head_at = setup.driver.put(&header(VIRTIO_BLK_T_IN, 2));
    let room = setup.driver.put(&[UNTOUCHED; 513]);
    setup.mock.add(&[(head_at, 16, 0), (room, 513, WRITE)]);
    setup.worker.turn().unwrap();
    assert_eq!(setup.driver.get(room + 511, 2), [3, OK]);
}

#[test]
fn s19_missing_status_and_short_header_reclaim_the_head() {
    let mut setup = setup(false);
    let head_at = setup.driver.put(&header(VIRTIO_BLK_T_IN, 0));
    setup.mock.add(&[(head_at, 16, 0)]);
    setup.mock.add(&[(head_at, 1, 0), (0x9000, 513, WRITE)]);
    setup.worker.turn().unwrap();
    let used = setup.mock.used();
    assert_eq!((used[0].1, used[1].1), (0, 1));
    assert_eq!(setup.driver.get(0x9000 + 512, 1), [IO_ERR]);
}

#[test]
fn v10_s04_unreachable_data_is_an_error_with_status() {
    let mut setup = setup(false);
    let before = setup.disk_bytes();
    for (addr, len) in [(u64::MAX - 255, 512), (LOW.1 as u64 - 8, 512), (1 << 40, 512)] {
        assert_eq!(setup.send(&header(VIRTIO_BLK_T_OUT, 0), &[(addr, len, 0)]).0, IO_ERR);
        assert_eq!(setup.send(&header(VIRTIO_BLK_T_IN, 0), &[(addr, len, WRITE)]).0, IO_ERR);
    }
    assert_eq!(setup.disk_bytes(), before);
}

#[test]
fn v06_reset_with_requests_queued_then_serve_again() {
    let setup = setup(false);
    let mut blk = Blk::new(setup.worker.into_disk());
    for _ in 0..50 {
        let mut driver = Driver::new();
        let mut mock = driver.queue(QUEUE_SIZE);
        let head_at = driver.put(&header(VIRTIO_BLK_T_IN, 0));
        blk.activate(driver.activation(BASE_FEATURES, &[&mock])).unwrap();
        for _ in 0..40 {
            mock.add(&[(head_at, 16, 0), (0x20000, 2048, WRITE), (0x30000, 1, WRITE)]);
        }
        mock.kick();
        blk.reset();
        let done = mock.used().len();
        mock.kick();
        assert!(mock.used().is_empty(), "used after the reset, {done} before it");
    }
}

#[test]
fn v09_looping_chain_latches_and_reset_recovers() {
    let setup = setup(false);
    let mut blk = Blk::new(setup.worker.into_disk());
    let mut driver = Driver::new();
    let mut mock = driver.queue(QUEUE_SIZE);
    mock.set(0, 0x9000, 16, NEXT, 0);
    mock.offer(0);
    blk.activate(driver.activation(BASE_FEATURES, &[&mock])).unwrap();
    while !driver.needs_reset() {
        std::thread::yield_now();
    }
    blk.reset();
    let mut driver = Driver::new();
    let mut mock = driver.queue(QUEUE_SIZE);
    let head_at = driver.put(&header(VIRTIO_BLK_T_IN, 0));
    mock.add(&[(head_at, 16, 0), (0x20000, 512, WRITE), (0x30000, 1, WRITE)]);
    blk.activate(driver.activation(BASE_FEATURES, &[&mock])).unwrap();
    while mock.used().is_empty() {
        std::thread::yield_now();
    }
    blk.reset();
}

#[test]
fn missing_queue_fails_the_activation_and_keeps_the_disk() {
    let setup = setup(false);
    let mut blk = Blk::new(setup.worker.into_disk());
    let mut driver = Driver::new();
    let mock = driver.queue(QUEUE_SIZE);
    assert!(matches!(
        blk.activate(driver.activation(BASE_FEATURES, &[])),
        Err(ActivateError::QueueNotReady(0))
    ));
    blk.activate(driver.activation(BASE_FEATURES, &[&mock])).unwrap();
    blk.reset();
}

#[test]
fn config_tells_the_capacity() {
    let blk = Blk::new(setup(true).worker.into_disk());
    let mut capacity = [0; 8];
    blk.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 8);
    assert_ne!(blk.features() & 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_RO, 0);
}

proptest! {
    /// S40: random requests over random buffers; bytes outside of the disk's files cannot exist, so what is checked is
    /// that every request comes back and a read-only disk stays as it is.
    #[test]
    fn s40_random_requests_come_back(
        requests in prop::collection::vec(
            (0u32..16, 0u64..12, prop::collection::vec((0u64..0x0011_0000, 0u32..2048, prop::bool::ANY), 0..4)),
            1..6),
    ) {
        let mut setup = setup(true);
        let before = setup.disk_bytes();
        for (kind, sector, data) in requests {
            let data: Vec<_> =
                data.into_iter().map(|(addr, len, write)| (addr | 0x4_0000, len, if write { WRITE } else { 0 })).collect();
            setup.send(&header(kind, sector), &data);
        }
        prop_assert_eq!(setup.disk_bytes(), before);
    }
}
