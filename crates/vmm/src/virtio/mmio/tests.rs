//! Plays the driver through register reads and writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use proptest::prelude::*;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::virtio::device::ActivateError;

const EVENT_IDX: u64 = 1 << 29;
const RING_PACKED: u64 = 1 << 34;
const DEVICE_FEATURE: u64 = 1 << 5;
const ID: u32 = 42;
const SIZES: [u16; 2] = [256, 64];

const QUEUE_SELECT: u64 = 0x30;
const QUEUE_SIZE_MAX: u64 = 0x34;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const DESCRIPTORS: u64 = 0x80;
const GENERATION: u64 = 0xfc;

/// Size and descriptor table of a queue, where it was ready.
type Shape = Option<(u16, u64)>;

/// What the device saw.
#[derive(Default)]
struct Seen {
    activations: Vec<(u64, Vec<Shape>)>,
    resets: usize,
    interrupt: Option<Interrupt>,
    kicks: Vec<EventFd>,
    config: [u8; 8],
    refuse: bool,
}

struct Probe(Arc<Mutex<Seen>>);

impl VirtioDevice for Probe {
    fn device_id(&self) -> u32 {
        ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn features(&self) -> u64 {
        VERSION_1 | EVENT_IDX | RING_PACKED | DEVICE_FEATURE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.0.lock().unwrap().config;
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut seen = self.0.lock().unwrap();
        for (at, byte) in (offset..).zip(data) {
            if let Some(place) = usize::try_from(at).ok().and_then(|at| seen.config.get_mut(at)) {
                *place = *byte;
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut seen = self.0.lock().unwrap();
        let queues = activation.queues.iter();
        let shapes = queues.map(|queue| queue.as_ref().map(|q| (q.queue.size(), q.queue.desc_table())));
        seen.activations.push((activation.features, shapes.collect()));
        seen.kicks = activation.queues.into_iter().flatten().map(|queue| queue.kick).collect();
        seen.interrupt = Some(activation.interrupt);
        if seen.refuse { Err(ActivateError::QueueNotReady(0)) } else { Ok(()) }
    }

    fn reset(&mut self) {
        let mut seen = self.0.lock().unwrap();
        seen.resets += 1;
        seen.kicks.clear();
    }
}

struct Driver {
    slot: Slot,
    seen: Arc<Mutex<Seen>>,
    errors: Arc<AtomicU64>,
}

impl Driver {
    fn new() -> Self {
        let mut driver = Self::empty();
        let kicks = SIZES.iter().map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        assert!(driver.slot.plug(Box::new(Probe(Arc::clone(&driver.seen))), kicks).is_ok());
        driver
    }

    fn empty() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let errors = Arc::new(AtomicU64::new(0));
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap(), Arc::clone(&errors));
        Self { slot: Slot::new(memory, interrupt, DeviceThread::none()), seen: Arc::default(), errors }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.slot.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.slot.write(offset, &value.to_le_bytes());
    }

    fn negotiate(&mut self, features: u64) {
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        for (select, word) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(0x24, select);
            self.write(0x20, word);
        }
        self.write(STATUS, 11);
    }

    fn set_up_queue(&mut self, index: u32, base: u32, size: u32) {
        self.write(QUEUE_SELECT, index);
        self.write(QUEUE_SIZE, size);
        for (offset, address) in [(DESCRIPTORS, base), (0x90, base + 0x1000), (0xa0, base + 0x2000)] {
            self.write(offset, address);
            self.write(offset + 4, 0);
        }
        self.write(QUEUE_READY, 1);
    }

    fn go_live(&mut self) {
        self.negotiate(VERSION_1 | DEVICE_FEATURE);
        self.set_up_queue(0, 0x1000, 16);
        self.set_up_queue(1, 0x4000, 8);
        self.write(STATUS, 15);
        assert_eq!(self.read(STATUS), 15);
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_live(&mut self) -> bool {
        self.read(STATUS) & 4 != 0
    }
}

#[test]
fn driver_of_the_specification_activates_the_device() {
    let mut driver = Driver::new();
    assert_eq!((driver.read(0), driver.read(4), driver.read(8)), (0x7472_6976, 2, ID));
    driver.go_live();
    let seen = driver.seen();
    let queues = vec![Some((16, 0x1000)), Some((8, 0x4000))];
    assert_eq!(seen.activations, [(VERSION_1 | DEVICE_FEATURE, queues)]);
}

#[test]
fn packed_ring_is_never_offered() {
    let mut driver = Driver::new();
    driver.write(0x14, 0);
    assert_eq!(driver.read(0x10), (EVENT_IDX | DEVICE_FEATURE) as u32);
    driver.write(0x14, 1);
    assert_eq!(driver.read(0x10), 1);
    driver.write(0x14, 2);
    assert_eq!(driver.read(0x10), 0);
}

#[test]
fn v04_queues_do_not_change_after_activation() {
    let mut driver = Driver::new();
    driver.go_live();
    driver.write(QUEUE_SELECT, 0);
    for value in [0, u32::MAX] {
        for offset in [QUEUE_SIZE, QUEUE_READY, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
            driver.write(offset, value);
        }
        assert_eq!(driver.read(QUEUE_READY), 1);
    }
    assert_eq!(driver.seen().activations.len(), 1);
    assert!(driver.is_live());
}

#[test]
fn v08_any_queue_select_is_harmless() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    for select in 2..=65535 {
        driver.write(QUEUE_SELECT, select);
        driver.write(QUEUE_SIZE, 8);
        driver.write(QUEUE_READY, 1);
        assert_eq!((driver.read(QUEUE_SIZE_MAX), driver.read(QUEUE_READY)), (0, 0));
    }
}

#[test]
fn s08_overlapping_queues_need_a_reset() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, 0x1000, 16);
    driver.set_up_queue(1, 0x1000, 8);
    driver.write(STATUS, 15);
    assert_eq!(driver.read(STATUS) & 64, 64);
    assert!(driver.seen().activations.is_empty());
}

#[test]
fn s09_queue_of_size_zero_does_not_get_ready() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, 0x1000, 0);
    assert_eq!(driver.read(QUEUE_READY), 0);
    assert_eq!(driver.errors.load(Ordering::Relaxed), 1);
}

#[test]
fn s11_a_thousand_resets_leave_the_device_usable() {
    let mut driver = Driver::new();
    for _ in 0..1000 {
        driver.go_live();
        driver.write(STATUS, 0);
        assert_eq!(driver.read(STATUS), 0);
    }
    driver.go_live();
    assert_eq!(driver.seen().resets, 1000);
}

#[test]
fn s11_reset_inside_negotiation_forgets_it() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, 0x1000, 16);
    driver.write(STATUS, 0);
    driver.write(QUEUE_SELECT, 0);
    assert_eq!(driver.read(QUEUE_READY), 0);
    driver.write(STATUS, 15);
    assert!(driver.seen().activations.is_empty());
}

#[test]
fn s12_notifications_of_no_live_queue_are_ignored() {
    let mut driver = Driver::new();
    driver.write(QUEUE_NOTIFY, 0);
    driver.go_live();
    assert!(driver.seen().kicks.iter().all(|kick| kick.read().is_err()));
    driver.write(QUEUE_NOTIFY, 65535);
    driver.write(QUEUE_NOTIFY, 1);
    assert!(driver.seen().kicks[0].read().is_err());
    assert_eq!(driver.seen().kicks[1].read().ok(), Some(1));
}

#[test]
fn s14_unoffered_features_are_not_agreed() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1 | RING_PACKED);
    assert_eq!(driver.read(STATUS), 3);
    driver.write(STATUS, 15);
    assert!(driver.seen().activations.is_empty());
}

#[test]
fn s14_version_1_is_required() {
    let mut driver = Driver::new();
    driver.negotiate(DEVICE_FEATURE);
    assert_eq!(driver.read(STATUS), 3);
}

#[test]
fn features_do_not_change_after_features_ok() {
    let mut driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.write(0x24, 0);
    driver.write(0x20, u32::MAX);
    driver.set_up_queue(0, 0x1000, 16);
    driver.write(STATUS, 15);
    assert_eq!(driver.seen().activations[0].0, VERSION_1);
}

#[test]
fn s15_registers_have_one_width() {
    let mut driver = Driver::new();
    for width in [1, 2, 8] {
        let mut data = vec![0xee; width];
        driver.slot.read(0, &mut data);
        assert_eq!(data, vec![0; width]);
        driver.slot.write(STATUS, &vec![1; width]);
    }
    assert_eq!(driver.read(STATUS), 0);
}

#[test]
fn s15_write_only_registers_read_as_zero_and_read_only_ones_keep() {
    let mut driver = Driver::new();
    driver.go_live();
    for offset in [0x14, 0x20, 0x24, 0x30, 0x38, 0x50, 0x64, 0x80, 0x90, 0xa0, 0x1, 0x6e, 0xc0] {
        assert_eq!(driver.read(offset), 0, "{offset:#x}");
    }
    for offset in [0x0, 0x4, 0x8, 0xc, 0x10, 0x34, 0x60, 0xfc] {
        let before = driver.read(offset);
        driver.write(offset, 0xdead);
        assert_eq!(driver.read(offset), before, "{offset:#x}");
    }
}

#[test]
fn s15_config_space_takes_any_width_and_ends() {
    let mut driver = Driver::new();
    driver.slot.write(0x100, &[1, 2]);
    driver.slot.write(0x102, &[3]);
    driver.slot.write(0xffe, &[9; 2]);
    let mut data = [0xee; 8];
    driver.slot.read(0x100, &mut data);
    assert_eq!(data, [1, 2, 3, 0, 0, 0, 0, 0]);
    driver.slot.read(0x104, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn s16_shared_memory_regions_are_absent() {
    let mut driver = Driver::new();
    driver.write(0xac, 7);
    assert_eq!([0xb0, 0xb4, 0xb8, 0xbc].map(|offset| driver.read(offset)), [u32::MAX; 4]);
}

#[test]
fn s16_config_generation_moves_with_changes_only() {
    let mut driver = Driver::new();
    driver.go_live();
    let before = driver.read(GENERATION);
    assert_eq!(driver.read(GENERATION), before);
    driver.seen().interrupt.as_ref().unwrap().config_changed();
    assert_ne!(driver.read(GENERATION), before);
}

#[test]
fn s39_interrupts_are_pending_until_acknowledged() {
    let mut driver = Driver::new();
    driver.go_live();
    let interrupt = driver.seen().interrupt.clone().unwrap();
    interrupt.used_buffers();
    interrupt.config_changed();
    assert_eq!(driver.read(INTERRUPT_STATUS), 3);
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    driver.write(INTERRUPT_ACK, u32::MAX);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
}

#[test]
fn broken_queue_asks_for_a_reset_until_it_comes() {
    let mut driver = Driver::new();
    driver.go_live();
    driver.seen().interrupt.as_ref().unwrap().needs_reset();
    assert_eq!(driver.read(STATUS), 15 | 64);
    driver.write(STATUS, 0);
    assert_eq!(driver.read(STATUS), 0);
    driver.go_live();
}

#[test]
fn device_that_refuses_needs_a_reset() {
    let mut driver = Driver::new();
    driver.seen().refuse = true;
    driver.negotiate(VERSION_1);
    driver.write(STATUS, 15);
    assert_eq!(driver.read(STATUS), 15 | 64);
}

#[test]
fn placeholder_has_id_zero_and_ignores_its_driver() {
    let mut driver = Driver::empty();
    driver.write(STATUS, 15);
    assert_eq!((driver.read(0), driver.read(4), driver.read(8)), (0x7472_6976, 2, 0));
    assert_eq!(driver.read(STATUS), 0);
}

#[test]
fn unplugged_slot_is_a_placeholder_again() {
    let mut driver = Driver::new();
    driver.go_live();
    assert_eq!(driver.slot.unplug().map(|kicks| kicks.len()), Some(2));
    assert_eq!(driver.seen().resets, 1);
    assert_eq!((driver.read(8), driver.read(STATUS)), (0, 0));
    assert!(driver.slot.is_empty());
    let kicks = SIZES.iter().map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
    assert!(driver.slot.plug(Box::new(Probe(Arc::clone(&driver.seen))), kicks).is_ok());
    driver.go_live();
}

#[test]
fn occupied_slot_takes_no_second_device() {
    let mut driver = Driver::new();
    let second = Box::new(Probe(Arc::default()));
    assert!(driver.slot.plug(second, Vec::new()).is_err());
    assert_eq!(driver.read(8), ID);
}

proptest! {
    /// S40: whatever the sequence, no panic, and the device only ever sees agreed features and queues in memory.
    #[test]
    fn s40_any_register_sequence_is_harmless(
        accesses in prop::collection::vec((any::<bool>(), 0u64..0x200, any::<u32>(), 1usize..9), 0..300),
    ) {
        let mut driver = Driver::new();
        for (write, offset, value, width) in accesses {
            // Most accesses hit a register, with the small numbers that drivers write.
            let offset = if value % 4 == 0 { offset } else { offset & !3 };
            let value = if value % 3 == 0 { value } else { value % 64 };
            let width = if value % 5 == 0 { width } else { 4 };
            let bytes = u64::from(value).to_le_bytes();
            if write {
                driver.slot.write(offset, &bytes[..width]);
            } else {
                driver.slot.read(offset, &mut [0; 8][..width]);
            }
        }
        for (features, queues) in &driver.seen().activations {
            prop_assert_eq!(features & !(VERSION_1 | EVENT_IDX | DEVICE_FEATURE), 0);
            for (size, descriptors) in queues.iter().flatten() {
                prop_assert!(descriptors + u64::from(*size) * 16 <= 0x10000);
            }
        }
    }
}
