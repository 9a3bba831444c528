use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::virtio::testing::{Driver, HIGH, INDIRECT, LOW, MockQueue, NEXT, WRITE};

const ALL: u64 = BASE_FEATURES;
const NO_INDIRECT: u64 = ALL & !(1 << VIRTIO_RING_F_INDIRECT_DESC);
const PLAIN: u64 = NO_INDIRECT & !(1 << VIRTIO_RING_F_EVENT_IDX);

fn setup(features: u64) -> (Driver, MockQueue, DeviceQueue) {
    let mut driver = Driver::new();
    let mock = driver.queue(8);
    let queue = DeviceQueue::new(mock.active(), features, &driver.memory).unwrap();
    (driver, mock, queue)
}

/// Pops a chain that must be there and sound.
fn pop(driver: &Driver, queue: &mut DeviceQueue) -> Chain {
    queue.pop(&driver.memory).unwrap().unwrap()
}

#[test]
fn sound_chain_comes_with_its_buffers_in_order() {
    let (driver, mut mock, mut queue) = setup(ALL);
    let head = mock.add(&[(0x9000, 3, 0), (0x9100, 5, 0), (0x9200, 7, WRITE)]);
    let chain = pop(&driver, &mut queue);
    assert_eq!((chain.head, chain.fault), (head, None));
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 7));
    assert!(queue.pop(&driver.memory).unwrap().is_none());
}

#[test]
fn s19_bytes_split_over_buffers_read_and_write_as_one() {
    let (driver, mut mock, mut queue) = setup(ALL);
    driver.memory.write_slice(b"abcdef", GuestAddress(0x9000)).unwrap();
    mock.add(&[(0x9000, 1, 0), (0x9001, 2, 0), (0x9003, 3, 0), (0x9100, 1, WRITE), (0x9200, 2, WRITE)]);
    let chain = pop(&driver, &mut queue);
    let mut out = [0; 4];
    assert!(chain.read(&driver.memory, 1, &mut out));
    assert_eq!(&out, b"bcde");
    assert!(!chain.read(&driver.memory, 3, &mut out));
    assert!(chain.write(&driver.memory, 0, b"xyz"));
    assert_eq!((driver.get(0x9100, 1), driver.get(0x9200, 2)), (b"x".to_vec(), b"yz".to_vec()));
    assert!(!chain.write(&driver.memory, 1, b"xyz"));
}

#[test]
fn s01_chain_that_loops_breaks_the_queue() {
    let (driver, mut mock, mut queue) = setup(ALL);
    mock.set(0, 0x9000, 1, NEXT, 1);
    mock.set(1, 0x9000, 1, NEXT, 0);
    mock.offer(0);
    assert!(matches!(queue.pop(&driver.memory), Err(QueueError::ChainLength)));
}

#[test]
fn s01_indirect_chain_longer_than_the_queue_breaks_it() {
    let (mut driver, mut mock, mut queue) = setup(ALL);
    let table = driver.place(16 * 9);
    for n in 0..9u16 {
        let next = if n < 8 { NEXT } else { 0 };
        let at = GuestAddress(table + 16 * u64::from(n));
        driver.memory.write_obj(Descriptor::new(0x9000, 1, next, n + 1), at).unwrap();
    }
    mock.set(0, table, 16 * 9, INDIRECT, 0);
    mock.offer(0);
    assert!(matches!(queue.pop(&driver.memory), Err(QueueError::ChainLength)));
}

#[test]
fn indirect_chain_as_long_as_the_queue_is_served() {
    let (mut driver, mut mock, mut queue) = setup(ALL);
    let table = driver.place(16 * 8);
    for n in 0..8u16 {
        let next = if n < 7 { NEXT } else { 0 };
        let at = GuestAddress(table + 16 * u64::from(n));
        driver.memory.write_obj(Descriptor::new(0x9000, 1, next, n + 1), at).unwrap();
    }
    mock.set(0, table, 16 * 8, INDIRECT, 0);
    mock.offer(0);
    assert_eq!(pop(&driver, &mut queue).readable_len(), 8);
}

#[test]
fn s02_next_or_head_out_of_range_breaks_the_queue() {
    let (driver, mut mock, mut queue) = setup(ALL);
    mock.set(0, 0x9000, 1, NEXT, 8);
    mock.offer(0);
    assert!(matches!(queue.pop(&driver.memory), Err(QueueError::Index(8))));
    mock.offer(9);
    assert!(matches!(queue.pop(&driver.memory), Err(QueueError::Index(9))));
}

/// Offers one indirect descriptor and says how the queue takes it.
fn indirect(features: u64, addr: u64, len: u32, flags: u16) -> Result<Option<Chain>, QueueError> {
    let (driver, mut mock, mut queue) = setup(features);
    mock.set(0, addr, len, INDIRECT | flags, 1);
    mock.offer(0);
    queue.pop(&driver.memory)
}

#[test]
fn s03_indirect_rules_hold() {
    assert!(matches!(indirect(NO_INDIRECT, 0x9000, 16, 0), Err(QueueError::Indirect)));
    assert!(matches!(indirect(ALL, 0x9000, 16, NEXT), Err(QueueError::Indirect)));
    assert!(matches!(indirect(ALL, 0x9000, 0, 0), Err(QueueError::Indirect)));
    assert!(matches!(indirect(ALL, 0x9000, 24, 0), Err(QueueError::Indirect)));
    assert!(matches!(indirect(ALL, 0x9000, 0xffff_fff0, 0), Err(QueueError::Indirect)));
    assert!(matches!(indirect(ALL, LOW.1 as u64, 16, 0), Err(QueueError::Table)));
    assert!(matches!(indirect(ALL, LOW.1 as u64 - 8, 16, 0), Err(QueueError::Table)));
    assert!(matches!(indirect(ALL, u64::MAX - 7, 16, 0), Err(QueueError::Table)));
    // A table of zeroes is one empty readable buffer.
    assert!(indirect(ALL, 0x9000, 16, WRITE).unwrap().is_some());
}

#[test]
fn s03_indirect_within_indirect_breaks_the_queue() {
    let (mut driver, mut mock, mut queue) = setup(ALL);
    let table = driver.place(16);
    driver.memory.write_obj(Descriptor::new(table, 16, INDIRECT, 0), GuestAddress(table)).unwrap();
    mock.set(0, table, 16, INDIRECT, 0);
    mock.offer(0);
    assert!(matches!(queue.pop(&driver.memory), Err(QueueError::Indirect)));
}

#[test]
fn s04_v10_bad_addresses_fault_the_request_only() {
    let (driver, mut mock, mut queue) = setup(ALL);
    let (low_end, high_end) = (LOW.1 as u64, HIGH.0 + HIGH.1 as u64);
    for (addr, len) in [
        (low_end, 1),
        (low_end - 1, 2),
        (high_end - 1, 2),
        (u64::MAX - 255, 512),
        (1 << 52, 1),
        (HIGH.0 - 1, 2),
    ] {
        mock.add(&[(addr, len, WRITE)]);
        let chain = pop(&driver, &mut queue);
        assert_eq!(chain.fault, Some(ChainFault::Address), "{addr:#x}+{len:#x}");
        assert!(chain.writable_at(&driver.memory, 0, len as usize).is_none());
    }
    mock.add(&[(0x9000, 1, 0)]);
    assert_eq!(pop(&driver, &mut queue).fault, None);
}

#[test]
fn s05_total_length_overflow_faults_the_request() {
    let (driver, mut mock, mut queue) = setup(ALL);
    mock.add(&[(0x9000, u32::MAX, 0), (0x9000, 1, 0)]);
    let chain = pop(&driver, &mut queue);
    assert!(chain.fault.is_some());
    assert_eq!(chain.readable_len(), 0);
}

#[test]
fn s18_readable_after_writable_faults_the_request() {
    let (driver, mut mock, mut queue) = setup(ALL);
    mock.add(&[(0x9000, 1, WRITE), (0x9000, 1, 0)]);
    assert_eq!(pop(&driver, &mut queue).fault, Some(ChainFault::Order));
}

#[test]
fn s06_v14_avail_idx_jump_is_refused() {
    let (driver, mut mock, mut queue) = setup(ALL);
    mock.add(&[(0x9000, 1, 0)]);
    pop(&driver, &mut queue);
    for jump in [10, 0, 0x8000, u16::MAX] {
        mock.set_avail_idx(jump);
        assert!(matches!(queue.pop(&driver.memory), Err(QueueError::Avail(_))), "{jump}");
    }
}

#[test]
fn s06_avail_idx_wraps() {
    let (driver, mut mock, mut queue) = setup(ALL);
    for _ in 0..70_000 {
        let head = mock.add(&[(0x9000, 1, 0)]);
        assert_eq!(pop(&driver, &mut queue).head, head);
        queue.push(&driver.memory, head, 0).unwrap();
        assert_eq!(mock.used(), [(head, 0)]);
    }
}

#[test]
fn s08_rings_outside_of_memory_are_refused() {
    let mut driver = Driver::new();
    let mut mock = driver.queue(8);
    mock.used = LOW.1 as u64 - 16;
    assert!(DeviceQueue::new(mock.active(), ALL, &driver.memory).is_err());
}

#[test]
fn unpopped_request_is_popped_again() {
    let (driver, mut mock, mut queue) = setup(ALL);
    mock.add(&[(0x9000, 1, 0)]);
    let first = pop(&driver, &mut queue);
    queue.unpop();
    assert_eq!(pop(&driver, &mut queue), first);
}

#[test]
fn s17_event_idx_decides_on_the_interrupt() {
    let (driver, mut mock, mut queue) = setup(ALL);
    mock.set_used_event(1);
    for wanted in [false, true, false] {
        let head = mock.add(&[(0x9000, 1, WRITE)]);
        pop(&driver, &mut queue);
        queue.push(&driver.memory, head, 1).unwrap();
        queue.announce(&driver.memory, &driver.interrupt).unwrap();
        assert_eq!(driver.take_interrupt(), wanted);
    }
}

#[test]
fn avail_flag_suppresses_the_interrupt_without_event_idx() {
    let (driver, mut mock, mut queue) = setup(PLAIN);
    for off in [1, 0] {
        mock.set_avail_flags(off);
        let head = mock.add(&[(0x9000, 1, WRITE)]);
        pop(&driver, &mut queue);
        queue.push(&driver.memory, head, 1).unwrap();
        queue.announce(&driver.memory, &driver.interrupt).unwrap();
        assert_eq!(driver.take_interrupt(), off == 0);
    }
}

#[test]
fn nothing_pushed_means_no_interrupt() {
    let (driver, _mock, mut queue) = setup(PLAIN);
    queue.announce(&driver.memory, &driver.interrupt).unwrap();
    assert!(!driver.take_interrupt());
}

#[test]
fn want_kick_tells_of_requests_that_came_before() {
    let (driver, mut mock, mut queue) = setup(ALL);
    assert!(!queue.want_kick(&driver.memory).unwrap());
    mock.add(&[(0x9000, 1, 0)]);
    assert!(queue.want_kick(&driver.memory).unwrap());
}

fn any_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let addr = prop_oneof![0u64..0x40_0000, any::<u64>()];
    let len = prop_oneof![0u32..64, any::<u32>()];
    (addr, len, 0u16..8, prop_oneof![0u16..10, any::<u16>()])
}

proptest! {
    /// S40: whatever stands in the rings, a pop ends with a bounded chain or an error.
    #[test]
    fn s40_random_rings_end_in_bounded_chains_or_errors(
        descriptors in prop::collection::vec(any_descriptor(), 8),
        heads in prop::collection::vec(prop_oneof![0u16..9, any::<u16>()], 8),
        idx in 0u16..12,
    ) {
        let (driver, mut mock, mut queue) = setup(ALL);
        for (n, (addr, len, flags, next)) in (0u16..).zip(descriptors) {
            mock.set(n, addr, len, flags, next);
        }
        for head in heads {
            mock.offer(head);
        }
        mock.set_avail_idx(idx);
        for _ in 0..8 {
            let Ok(Some(chain)) = queue.pop(&driver.memory) else { break };
            prop_assert!(chain.readable.len() + chain.writable.len() <= 8);
            if chain.fault.is_none() {
                prop_assert!(chain.readable_at(&driver.memory, 0, usize::MAX).is_some());
                prop_assert!(chain.writable_at(&driver.memory, 0, usize::MAX).is_some());
            }
            let mut out = [0; 16];
            chain.read(&driver.memory, 0, &mut out);
        }
    }
}
