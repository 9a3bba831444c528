use std::fs::File;
use std::os::unix::fs::MetadataExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;

use super::*;
use crate::virtio::balloon::{Balloon, PAGE, QUEUE_SIZES};
use crate::virtio::device::VirtioDevice;
use crate::virtio::queue::BASE_FEATURES;
use crate::virtio::testing::{Driver, HIGH, LOW, MockQueue, NEXT, WRITE};

struct Setup {
    driver: Driver,
    queues: [MockQueue; 3],
    worker: BalloonWorker,
    shared: Arc<Shared>,
    file: File,
}

/// Guest memory in one shared file, as the VMM has it, every page of it in use.
fn setup() -> Setup {
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len((LOW.1 + HIGH.1) as u64).unwrap();
    let regions = [
        (GuestAddress(LOW.0), LOW.1, Some(FileOffset::new(file.try_clone().unwrap(), 0))),
        (GuestAddress(HIGH.0), HIGH.1, Some(FileOffset::new(file.try_clone().unwrap(), LOW.1 as u64))),
    ];
    let memory = GuestMemoryMmap::from_ranges_with_files(regions).unwrap();
    let mut driver = Driver::with_memory(memory);
    driver.fill(LOW, 0xaa);
    driver.fill(HIGH, 0xaa);
    let queues = QUEUE_SIZES.map(|size| driver.queue(size));
    for queue in &queues {
        queue.clear();
    }
    let shared = Arc::default();
    let activation = driver.activation(BASE_FEATURES | F_REPORTING, &[&queues[0], &queues[1], &queues[2]]);
    let worker = BalloonWorker::new(activation, Arc::clone(&shared), &Poller::new().unwrap()).unwrap();
    Setup { driver, queues, worker, shared, file }
}

impl Setup {
    fn resident(&self) -> u64 {
        self.file.metadata().unwrap().blocks() * 512
    }

    /// Inflates by these pages and says how many bytes went back to the host.
    fn inflate(&mut self, pages: &[u32]) -> u64 {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        let at = self.driver.put(&bytes);
        let before = self.resident();
        self.queues[INFLATE].add(&[(at, bytes.len() as u32, 0)]);
        self.run();
        assert_eq!(self.queues[INFLATE].used().len(), 1);
        before - self.resident()
    }

    fn run(&mut self) {
        while self.worker.turn().unwrap() == Next::Again {}
    }
}

#[test]
fn inflated_pages_go_back_to_the_host_and_read_as_zeroes() {
    let mut setup = setup();
    let first = (HIGH.0 / PAGE) as u32;
    assert_eq!(setup.inflate(&[first, first + 1, first + 5]), 3 * PAGE);
    assert_eq!(setup.driver.get(HIGH.0, 8), [0; 8]);
    assert_eq!(setup.driver.get(HIGH.0 + 2 * PAGE, 8), [0xaa; 8]);
    assert_eq!(setup.driver.get(HIGH.0 + 5 * PAGE, 8), [0; 8]);
    assert!(setup.driver.take_interrupt());
}

#[test]
fn reported_ranges_go_back_and_are_counted() {
    let mut setup = setup();
    let before = setup.resident();
    setup.queues[REPORTING].add(&[(HIGH.0, 64 * 1024, WRITE), (HIGH.0 + 0x2_0800, 0x2000, WRITE)]);
    setup.run();
    assert_eq!(before - setup.resident(), 64 * 1024 + PAGE);
    assert_eq!(setup.shared.reported_bytes.load(Ordering::Relaxed), 64 * 1024 + PAGE);
    assert_eq!(setup.driver.get(HIGH.0 + 0x2_0800, 8), [0xaa; 8]);
}

#[test]
fn deflate_is_answered() {
    let mut setup = setup();
    let at = setup.driver.put(&5u32.to_le_bytes());
    setup.queues[DEFLATE].add(&[(at, 4, 0)]);
    setup.run();
    assert_eq!(setup.queues[DEFLATE].used().len(), 1);
}

#[test]
fn v13_s32_pages_outside_of_memory_are_ignored() {
    let mut setup = setup();
    let hole = (LOW.1 as u64 / PAGE) as u32;
    assert_eq!(setup.inflate(&[u32::MAX, hole, hole + 1, 0xfee00, 0x10_0000]), 0);
    assert!(setup.driver.errors() > 0);
    // Memory on both sides of the hole in one run of pages.
    let last_low = hole - 1;
    let first_high = (HIGH.0 / PAGE) as u32;
    let all: Vec<u32> = (last_low..=first_high).collect();
    assert_eq!(setup.inflate(&all), 2 * PAGE);
}

#[test]
fn v13_overlong_and_odd_requests_are_ignored() {
    let mut setup = setup();
    let before = setup.resident();
    let queue = &mut setup.queues[INFLATE];
    queue.add(&[(HIGH.0, HIGH.1 as u32, 0)]);
    queue.add(&[(HIGH.0, u32::MAX, 0)]);
    queue.add(&[(HIGH.0, 7, 0)]);
    queue.add(&[(HIGH.0, 0, 0)]);
    queue.add(&[(HIGH.0, 4096, WRITE)]);
    setup.run();
    assert_eq!(setup.queues[INFLATE].used().len(), 5);
    assert_eq!(setup.resident(), before);
    assert_eq!(setup.driver.errors(), 5);
}

#[test]
fn s32_reports_outside_of_memory_are_ignored() {
    let mut setup = setup();
    let before = setup.resident();
    setup.queues[REPORTING].add(&[
        (LOW.1 as u64, 1 << 19, WRITE),
        (u64::MAX - 255, 512, WRITE),
        (1 << 40, u32::MAX, WRITE),
    ]);
    setup.run();
    assert_eq!(setup.resident(), before);
    assert_eq!(setup.shared.reported_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn s32_inflating_everything_with_the_rings_leaves_the_device_idle_and_resettable() {
    let mut driver = Driver::with_memory(setup().driver.memory);
    let mut queues = QUEUE_SIZES.map(|size| driver.queue(size));
    queues.iter().for_each(MockQueue::clear);
    let mut balloon = Balloon::new();
    let active = driver.activation(BASE_FEATURES | F_REPORTING, &[&queues[0], &queues[1], &queues[2]]);
    balloon.activate(active).unwrap();
    let all: Vec<u8> = (0..(LOW.1 as u64 / PAGE) as u32).flat_map(u32::to_le_bytes).collect();
    driver.memory.write_slice(&all, GuestAddress(HIGH.0)).unwrap();
    queues[INFLATE].add(&[(HIGH.0, all.len() as u32, 0)]);
    queues[INFLATE].kick();
    balloon.reset();
}

#[test]
fn private_memory_is_given_back_too() {
    let mut driver = Driver::new();
    driver.fill(HIGH, 0xaa);
    let queues = QUEUE_SIZES.map(|size| driver.queue(size));
    let activation = driver.activation(BASE_FEATURES, &[&queues[0], &queues[1]]);
    let mut worker = BalloonWorker::new(activation, Arc::default(), &Poller::new().unwrap()).unwrap();
    let [mut inflate, ..] = queues;
    let at = driver.put(&((HIGH.0 / PAGE) as u32).to_le_bytes());
    inflate.add(&[(at, 4, 0)]);
    worker.turn().unwrap();
    assert_eq!(driver.get(HIGH.0, 8), [0; 8]);
    assert_eq!(driver.get(HIGH.0 + PAGE, 8), [0xaa; 8]);
}

#[test]
fn v09_looping_report_latches_needs_reset() {
    let mut driver = Driver::new();
    let mut queues = QUEUE_SIZES.map(|size| driver.queue(size));
    queues[REPORTING].set(0, HIGH.0, 4096, NEXT | WRITE, 0);
    queues[REPORTING].offer(0);
    let mut balloon = Balloon::new();
    let active = driver.activation(BASE_FEATURES | F_REPORTING, &[&queues[0], &queues[1], &queues[2]]);
    balloon.activate(active).unwrap();
    while !driver.needs_reset() {
        std::thread::yield_now();
    }
    balloon.reset();
}

#[test]
fn target_reaches_the_guest_by_configuration_interrupt() {
    let mut driver = Driver::new();
    let queues = QUEUE_SIZES.map(|size| driver.queue(size));
    let mut balloon = Balloon::new();
    let handle = balloon.handle();
    handle.set_target(1);
    balloon.activate(driver.activation(BASE_FEATURES, &[&queues[0], &queues[1]])).unwrap();
    handle.set_target(3);
    assert_eq!(driver.interrupt.pending(), crate::virtio::device::INT_CONFIG);
    let mut pages = [0; 4];
    balloon.read_config(0, &mut pages);
    assert_eq!(u32::from_le_bytes(pages), 768);
    balloon.write_config(4, &512u32.to_le_bytes());
    assert_eq!(handle.size_bytes(), 2 << 20);
    balloon.write_config(0, &9u32.to_le_bytes());
    balloon.write_config(4, &[1]);
    balloon.write_config(6, &[1; 4]);
    assert_eq!(handle.size_bytes(), 2 << 20);
    handle.set_target(u32::MAX);
    balloon.reset();
    assert_eq!(handle.size_bytes(), 0);
}

proptest! {
    #[test]
    fn s40_random_requests_never_touch_the_device(
        chains in prop::collection::vec(
            (0usize..3, prop::collection::vec((any::<u64>(), any::<u32>(), prop::bool::ANY), 1..4)), 1..6),
    ) {
        let mut setup = setup();
        for (queue, chain) in chains {
            let buffers: Vec<_> = chain
                .into_iter()
                .map(|(addr, len, write)| (HIGH.0 + addr % 0x20_0000, len % 0x40_0000, if write { WRITE } else { 0 }))
                .collect();
            setup.queues[queue].add(&buffers);
            setup.run();
            prop_assert_eq!(setup.queues[queue].used().len(), 1);
        }
    }
}

use vm_memory::Bytes;
