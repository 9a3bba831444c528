//! Plays the driver of a device: lays rings out in guest memory, makes chains, reads what came back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Activation, ActiveQueue, INT_VRING, Interrupt};
use super::worker::new_event;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Where the two regions of memory begin and how long they are; between them is a hole.
pub(crate) const LOW: (u64, usize) = (0, 1 << 20);
pub(crate) const HIGH: (u64, usize) = (1 << 21, 1 << 20);

/// Guest memory, an interrupt line and a place to put things.
pub(crate) struct Driver {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) interrupt: Interrupt,
    errors: Arc<AtomicU64>,
    next: u64,
}

impl Driver {
    pub(crate) fn new() -> Self {
        let regions = [(GuestAddress(LOW.0), LOW.1), (GuestAddress(HIGH.0), HIGH.1)];
        Self::with_memory(GuestMemoryMmap::from_ranges(&regions).unwrap())
    }

    pub(crate) fn with_memory(memory: GuestMemoryMmap) -> Self {
        let errors = Arc::new(AtomicU64::new(0));
        let interrupt = Interrupt::new(new_event().unwrap(), Arc::clone(&errors));
        Self { memory, interrupt, errors, next: 0x1000 }
    }

    /// A zeroed place for `len` bytes, below the hole.
    pub(crate) fn place(&mut self, len: usize) -> u64 {
        let addr = self.next;
        self.next = (addr + len as u64).next_multiple_of(16);
        assert!(self.next <= LOW.1 as u64, "the driver's memory is used up");
        addr
    }

    /// A place that holds `bytes`.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> u64 {
        let addr = self.place(bytes.len());
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
        addr
    }

    pub(crate) fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// Fills a region with a byte.
    pub(crate) fn fill(&self, region: (u64, usize), byte: u8) {
        self.memory.write_slice(&vec![byte; region.1], GuestAddress(region.0)).unwrap();
    }

    pub(crate) fn queue(&mut self, size: u16) -> MockQueue {
        let entries = usize::from(size);
        MockQueue {
            memory: self.memory.clone(),
            size,
            table: self.place(16 * entries),
            avail: self.place(6 + 2 * entries),
            used: self.place(6 + 8 * entries),
            kick: new_event().unwrap(),
            next_descriptor: 0,
            avail_idx: 0,
            used_seen: 0,
        }
    }

    pub(crate) fn activation(&self, features: u64, queues: &[&MockQueue]) -> Activation {
        Activation {
            memory: self.memory.clone(),
            features,
            queues: queues.iter().map(|queue| Some(queue.active())).collect(),
            interrupt: self.interrupt.clone(),
        }
    }

    /// Mistakes that the device counted.
    pub(crate) fn errors(&self) -> u64 {
        self.errors.load(Ordering::SeqCst)
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.interrupt.0.needs_reset.load(Ordering::SeqCst)
    }

    /// Takes an interrupt for used buffers, if there is one.
    pub(crate) fn take_interrupt(&self) -> bool {
        let _ = self.interrupt.0.line.read();
        self.interrupt.0.status.swap(0, Ordering::SeqCst) & INT_VRING != 0
    }
}

/// The driver's side of a queue.
pub(crate) struct MockQueue {
    memory: GuestMemoryMmap,
    pub(crate) size: u16,
    pub(crate) table: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) kick: EventFd,
    next_descriptor: u16,
    avail_idx: u16,
    used_seen: u16,
}

impl MockQueue {
    pub(crate) fn active(&self) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.table)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.avail)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used)).unwrap();
        queue.set_ready(true);
        ActiveQueue { queue, kick: self.kick.try_clone().unwrap() }
    }

    /// Zeroes the rings, where memory is not fresh.
    pub(crate) fn clear(&self) {
        let entries = usize::from(self.size);
        for (at, len) in
            [(self.table, 16 * entries), (self.avail, 6 + 2 * entries), (self.used, 6 + 8 * entries)]
        {
            self.memory.write_slice(&vec![0; len], GuestAddress(at)).unwrap();
        }
    }

    /// Writes one descriptor as it is.
    pub(crate) fn set(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(self.table + 16 * u64::from(index));
        self.memory.write_obj(Descriptor::new(addr, len, flags, next), at).unwrap();
    }

    /// Makes a chain of (address, length, flags) available and returns its head.
    pub(crate) fn add(&mut self, buffers: &[(u64, u32, u16)]) -> u16 {
        let head = self.next_descriptor % self.size;
        for (n, (addr, len, flags)) in buffers.iter().enumerate() {
            let index = self.next_descriptor % self.size;
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
            let more = if n + 1 < buffers.len() { NEXT } else { 0 };
            self.set(index, *addr, *len, flags | more, self.next_descriptor % self.size);
        }
        self.offer(head);
        head
    }

    /// Puts a head into the available ring.
    pub(crate) fn offer(&mut self, head: u16) {
        let at = self.avail + 4 + 2 * u64::from(self.avail_idx % self.size);
        self.memory.write_obj(head.to_le(), GuestAddress(at)).unwrap();
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    pub(crate) fn set_avail_idx(&mut self, index: u16) {
        self.avail_idx = index;
        self.memory.store(index.to_le(), GuestAddress(self.avail + 2), Ordering::Release).unwrap();
    }

    /// VIRTQ_AVAIL_F_NO_INTERRUPT.
    pub(crate) fn set_avail_flags(&self, flags: u16) {
        self.memory.write_obj(flags.to_le(), GuestAddress(self.avail)).unwrap();
    }

    pub(crate) fn set_used_event(&self, index: u16) {
        let at = self.avail + 4 + 2 * u64::from(self.size);
        self.memory.write_obj(index.to_le(), GuestAddress(at)).unwrap();
    }

    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Heads and lengths that were used since the last call.
    pub(crate) fn used(&mut self) -> Vec<(u16, u32)> {
        let index: u16 = self.memory.load(GuestAddress(self.used + 2), Ordering::Acquire).unwrap();
        let mut out = Vec::new();
        while self.used_seen != u16::from_le(index) {
            let at = self.used + 4 + 8 * u64::from(self.used_seen % self.size);
            let element: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
            out.push((u16::try_from(element[0]).unwrap(), element[1]));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        out
    }
}
