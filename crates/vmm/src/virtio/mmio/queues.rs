//! What a driver says of a queue before the device sees it (virtio 1.2, section 2.7).

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::registers::Area;

const DESCRIPTOR_BYTES: u64 = 16;
const DRIVER_ENTRY_BYTES: u64 = 2;
const DEVICE_ENTRY_BYTES: u64 = 8;
/// Flags and index before the entries, event field behind them.
const RING_BYTES: u64 = 6;

/// A queue being set up. Addresses are whatever the driver wrote until [`QueueSetup::set_ready`] checks them.
pub(super) struct QueueSetup {
    max_size: u16,
    size: u32,
    descriptors: u64,
    driver: u64,
    device: u64,
    ready: bool,
}

impl QueueSetup {
    /// None where `max_size` is no power of two up to 32768.
    pub(super) fn new(max_size: u16) -> Option<Self> {
        Queue::new(max_size).ok()?;
        Some(Self { max_size, size: u32::from(max_size), descriptors: 0, driver: 0, device: 0, ready: false })
    }

    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn reset(&mut self) {
        *self = Self {
            max_size: self.max_size,
            size: u32::from(self.max_size),
            descriptors: 0,
            driver: 0,
            device: 0,
            ready: false,
        };
    }

    pub(super) fn set_size(&mut self, size: u32) {
        if !self.ready {
            self.size = size;
        }
    }

    pub(super) fn set_low(&mut self, area: Area, word: u32) {
        if let Some(address) = self.address_mut(area) {
            *address = *address & !u64::from(u32::MAX) | u64::from(word);
        }
    }

    pub(super) fn set_high(&mut self, area: Area, word: u32) {
        if let Some(address) = self.address_mut(area) {
            *address = *address & u64::from(u32::MAX) | u64::from(word) << 32;
        }
    }

    fn address_mut(&mut self, area: Area) -> Option<&mut u64> {
        if self.ready {
            return None;
        }
        Some(match area {
            Area::Descriptors => &mut self.descriptors,
            Area::Driver => &mut self.driver,
            Area::Device => &mut self.device,
        })
    }

    pub(super) fn set_not_ready(&mut self) {
        self.ready = false;
    }

    /// Checks everything (S08, S09); a queue that is wrong stays not ready.
    pub(super) fn set_ready(&mut self, memory: &GuestMemoryMmap) -> bool {
        self.ready = self.make(true).is_some_and(|queue| queue.is_valid(memory)) && self.is_backed(memory);
        self.ready
    }

    /// The queue for the device.
    pub(super) fn queue(&self) -> Option<Queue> {
        self.make(self.ready)
    }

    fn make(&self, ready: bool) -> Option<Queue> {
        let mut queue = Queue::new(self.max_size).ok()?;
        queue.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.device)).ok()?;
        queue.set_ready(ready);
        Some(queue)
    }

    /// The areas as address and length; none where an end wraps.
    fn areas(&self) -> Option<[(u64, u64); 3]> {
        let size = u64::from(self.size);
        let areas = [
            (self.descriptors, DESCRIPTOR_BYTES * size),
            (self.driver, RING_BYTES + DRIVER_ENTRY_BYTES * size),
            (self.device, RING_BYTES + DEVICE_ENTRY_BYTES * size),
        ];
        areas.iter().all(|(start, len)| start.checked_add(*len).is_some()).then_some(areas)
    }

    fn is_backed(&self, memory: &GuestMemoryMmap) -> bool {
        self.areas().is_some_and(|areas| {
            areas.iter().all(|(start, len)| {
                usize::try_from(*len).is_ok_and(|len| memory.check_range(GuestAddress(*start), len))
            })
        })
    }
}

/// Whether any two areas of the ready queues share a byte.
pub(super) fn overlap(queues: &[QueueSetup]) -> bool {
    let mut areas: Vec<(u64, u64)> =
        queues.iter().filter(|queue| queue.ready).filter_map(QueueSetup::areas).flatten().collect();
    areas.sort_unstable();
    areas.windows(2).any(|pair| match pair {
        [(start, len), (next, _)] => start + len > *next,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    fn queue(descriptors: u32, driver: u32, device: u32, size: u32) -> QueueSetup {
        let mut queue = QueueSetup::new(256).unwrap();
        queue.set_size(size);
        queue.set_low(Area::Descriptors, descriptors);
        queue.set_low(Area::Driver, driver);
        queue.set_low(Area::Device, device);
        queue
    }

    #[test]
    fn sound_queue_gets_ready() {
        assert!(queue(0x1000, 0x2000, 0x3000, 256).set_ready(&memory()));
    }

    #[test]
    fn s09_bad_sizes_stay_not_ready() {
        for size in [0, 3, 257, 512, 65535, 65536, u32::MAX] {
            assert!(!queue(0x1000, 0x2000, 0x3000, size).set_ready(&memory()), "{size}");
        }
    }

    #[test]
    fn s09_misaligned_areas_stay_not_ready() {
        assert!(!queue(0x1008, 0x2000, 0x3000, 16).set_ready(&memory()));
        assert!(!queue(0x1000, 0x2001, 0x3000, 16).set_ready(&memory()));
        assert!(!queue(0x1000, 0x2000, 0x3002, 16).set_ready(&memory()));
    }

    #[test]
    fn s08_areas_outside_memory_stay_not_ready() {
        assert!(!queue(0xfff0, 0x2000, 0x3000, 16).set_ready(&memory()));
        assert!(!queue(0x1000, 0xfff8, 0x3000, 16).set_ready(&memory()));
        assert!(!queue(0x1000, 0x2000, 0xd000_0000, 16).set_ready(&memory()));
        let mut wraps = queue(0x1000, 0x2000, 0xffff_fff0, 16);
        wraps.set_high(Area::Device, u32::MAX);
        assert!(!wraps.set_ready(&memory()));
    }

    #[test]
    fn s08_overlapping_areas_are_found() {
        let mut one = queue(0x1000, 0x2000, 0x3000, 16);
        let mut two = queue(0x4000, 0x5000, 0x3010, 16);
        assert!(one.set_ready(&memory()) && two.set_ready(&memory()));
        assert!(overlap(&[one, two]));
        let mut own = queue(0x1000, 0x1080, 0x3000, 16);
        assert!(own.set_ready(&memory()));
        assert!(overlap(&[own]));
    }

    #[test]
    fn ready_queue_does_not_change() {
        let mut queue = queue(0x1000, 0x2000, 0x3000, 16);
        assert!(queue.set_ready(&memory()));
        queue.set_size(0);
        queue.set_low(Area::Device, 0);
        assert_eq!(queue.queue().map(|queue| (queue.size(), queue.used_ring())), Some((16, 0x3000)));
    }

    proptest! {
        #[test]
        fn ready_queue_lies_in_memory(desc: u64, driver: u64, device: u64, size: u32) {
            let mut setup = queue(desc as u32, driver as u32, device as u32, size);
            if setup.set_ready(&memory()) {
                let areas = setup.areas().unwrap();
                prop_assert!(areas.iter().all(|(start, len)| start + len <= 0x10000));
                prop_assert!(size.is_power_of_two() && size <= 256);
            }
        }
    }
}
