//! A split virtqueue as a device sees it (virtio 1.2, section 2.7), on top of virtio-queue's ring positions.
//!
//! The guest owns every byte of the rings. Each descriptor is copied once into a [`Chain`], checked, and only the
//! copy is used (S07). Two kinds of mistakes are told apart:
//!
//! - the *ring* cannot be trusted any more (a loop, an index out of range, rings outside of memory, an avail index
//!   that jumps): [`QueueError`]. The device calls [`Interrupt::needs_reset`] and leaves its queues alone (V09).
//! - one *request* is wrong (an address outside of memory, a readable buffer after a writable one): the chain comes
//!   with [`Chain::fault`] set, the device answers with its own error and goes on.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActiveQueue, Interrupt};
use super::sys::GuestIoVec;

/// Features that every device of ours offers.
pub(crate) const BASE_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

const DESCRIPTOR_LEN: u64 = size_of::<Descriptor>() as u64;

/// A ring that cannot be served any more until the driver resets the device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    #[error("the rings do not lie in guest memory")]
    Rings,
    #[error("the available index is ahead by more than the queue's size, or the ring cannot be read")]
    Avail(#[source] virtio_queue::Error),
    #[error("descriptor index {0} is not below the queue's size")]
    Index(u16),
    #[error("a chain has more descriptors than the queue")]
    ChainLength,
    #[error("an indirect descriptor that is nested, chained on, not negotiated or of bad length")]
    Indirect,
    #[error("a descriptor table cannot be read")]
    Table,
    #[error("the used ring cannot be written")]
    Used(#[source] virtio_queue::Error),
    #[error("the process that serves the queues is gone")]
    Backend,
}

/// What is wrong with one request, while its ring is still sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainFault {
    /// A buffer is not within one region of guest memory.
    Address,
    /// A readable buffer follows a writable one (virtio 1.2, section 2.7.4.2).
    Order,
    /// The buffers together are longer than 2^32 - 1 bytes.
    TotalLength,
}

/// One buffer of a chain: guest address and length, as they stood in the descriptor when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub(crate) addr: GuestAddress,
    pub(crate) len: u32,
}

/// A request of the driver: host copy of a descriptor chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Index for the used ring.
    pub(crate) head: u16,
    /// Set where the buffers must not be used as a whole.
    pub(crate) fault: Option<ChainFault>,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

impl Chain {
    /// Bytes that the device may read; 0 for a chain of more than 2^32 - 1.
    pub(crate) fn readable_len(&self) -> u32 {
        total(&self.readable)
    }

    /// Bytes that the device may write; 0 for a chain of more than 2^32 - 1.
    pub(crate) fn writable_len(&self) -> u32 {
        total(&self.writable)
    }

    /// Copies from the readable bytes at `offset`, however they are split (S19); false where there are too few or they
    /// cannot be reached.
    pub(crate) fn read(&self, memory: &GuestMemoryMmap, offset: usize, out: &mut [u8]) -> bool {
        let mut done = 0;
        for (addr, len) in pieces(&self.readable, offset, out.len()) {
            let Some(part) = out.get_mut(done..done + len) else { return false };
            if memory.read_slice(part, addr).is_err() {
                return false;
            }
            done += len;
        }
        done == out.len()
    }

    /// Copies to the writable bytes at `offset`; false where there are too few or they cannot be reached.
    pub(crate) fn write(&self, memory: &GuestMemoryMmap, offset: usize, bytes: &[u8]) -> bool {
        let mut done = 0;
        for (addr, len) in pieces(&self.writable, offset, bytes.len()) {
            let Some(part) = bytes.get(done..done + len) else { return false };
            if memory.write_slice(part, addr).is_err() {
                return false;
            }
            done += len;
        }
        done == bytes.len()
    }

    /// The readable bytes from `offset` on, at most `limit`; none where a buffer is out of bounds.
    pub(crate) fn readable_at<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        offset: usize,
        limit: usize,
    ) -> Option<GuestIoVec<'m>> {
        let mut list = GuestIoVec::with_capacity(self.readable.len());
        list.push_all(memory, pieces(&self.readable, offset, limit)).then_some(list)
    }

    /// The writable bytes from `offset` on, at most `limit`; none where a buffer is out of bounds.
    pub(crate) fn writable_at<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        offset: usize,
        limit: usize,
    ) -> Option<GuestIoVec<'m>> {
        let mut list = GuestIoVec::with_capacity(self.writable.len());
        self.append_writable(&mut list, memory, offset, limit).then_some(list)
    }

    /// As [`Chain::writable_at`], at the end of a list that several chains share; false, and nothing added, where it does
    /// not fit.
    #[must_use]
    pub(crate) fn append_writable<'m>(
        &self,
        list: &mut GuestIoVec<'m>,
        memory: &'m GuestMemoryMmap,
        offset: usize,
        limit: usize,
    ) -> bool {
        list.push_all(memory, pieces(&self.writable, offset, limit))
    }

    /// The writable buffers.
    pub(crate) fn writable(&self) -> &[Buffer] {
        &self.writable
    }
}

fn total(buffers: &[Buffer]) -> u32 {
    buffers.iter().try_fold(0u32, |sum, buffer| sum.checked_add(buffer.len)).unwrap_or(0)
}

/// The parts of `buffers` that make up `limit` bytes from `offset` on.
fn pieces(buffers: &[Buffer], offset: usize, limit: usize) -> impl Iterator<Item = (GuestAddress, usize)> {
    let (mut skip, mut left) = (offset, limit);
    buffers.iter().filter_map(move |buffer| {
        let len = usize::try_from(buffer.len).ok()?;
        let skipped = skip.min(len);
        skip -= skipped;
        let count = left.min(len - skipped);
        left -= count;
        let addr = GuestAddress(buffer.addr.0.checked_add(skipped as u64)?);
        (count > 0).then_some((addr, count))
    })
}

/// A live queue.
pub(crate) struct DeviceQueue {
    queue: Queue,
    kick: EventFd,
    indirect: bool,
    /// Pushed since the driver was last told, or did not want to be.
    unannounced: u16,
}

impl DeviceQueue {
    /// Takes over a queue that the driver made ready.
    ///
    /// # Errors
    /// [`QueueError::Rings`] where the rings are not in `memory`.
    pub(crate) fn new(
        active: ActiveQueue,
        features: u64,
        memory: &GuestMemoryMmap,
    ) -> Result<Self, QueueError> {
        let ActiveQueue { mut queue, kick } = active;
        queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        if !queue.is_valid(memory) {
            return Err(QueueError::Rings);
        }
        let indirect = features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0;
        Ok(Self { queue, kick, indirect, unannounced: 0 })
    }

    /// Entries of the queue.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Clears the driver's notification.
    pub(crate) fn drain_kick(&self) {
        // Non-blocking; an error says that there was none.
        let _ = self.kick.read();
    }

    /// Takes the next request, if there is one.
    ///
    /// # Errors
    /// [`QueueError`] where the ring is broken; the queue must not be used any more.
    pub(crate) fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, QueueError> {
        let mut heads = self.queue.iter(memory).map_err(QueueError::Avail)?;
        let Some(head) = heads.next().map(|chain| chain.head_index()) else { return Ok(None) };
        self.walk(memory, head).map(Some)
    }

    /// Gives the request that was popped last back to the ring.
    pub(crate) fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Returns a request to the driver with `written` bytes in its writable buffers. [`DeviceQueue::announce`] tells it.
    ///
    /// # Errors
    /// [`QueueError::Used`] where the ring cannot be written.
    pub(crate) fn push(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        self.unannounced = self.unannounced.saturating_add(1);
        self.queue.add_used(memory, head, written).map_err(QueueError::Used)
    }

    /// Requests that were pushed and not announced.
    pub(crate) fn unannounced(&self) -> u16 {
        self.unannounced
    }

    /// Interrupts the driver for what was pushed since the last call, if it wants that.
    ///
    /// # Errors
    /// [`QueueError::Used`] where the driver's wish cannot be read.
    pub(crate) fn announce(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
    ) -> Result<(), QueueError> {
        if self.wants_interrupt(memory)? {
            interrupt.used_buffers();
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was pushed since the last call. All queues of a device share one:
    /// a worker that serves two asks both, and interrupts once.
    ///
    /// # Errors
    /// [`QueueError::Used`] where the driver's wish cannot be read.
    pub(crate) fn wants_interrupt(&mut self, memory: &GuestMemoryMmap) -> Result<bool, QueueError> {
        if std::mem::take(&mut self.unannounced) == 0 {
            return Ok(false);
        }
        let wanted = self.queue.needs_notification(memory).map_err(QueueError::Used)?;
        Ok(wanted && (self.queue.event_idx_enabled() || !self.interrupts_off(memory)))
    }

    /// Asks the driver for a notification on the next request. True: requests came meanwhile, for which none comes.
    ///
    /// # Errors
    /// [`QueueError::Used`] where the wish cannot be written.
    pub(crate) fn want_kick(&mut self, memory: &GuestMemoryMmap) -> Result<bool, QueueError> {
        self.queue.enable_notification(memory).map_err(QueueError::Used)
    }

    /// VIRTQ_AVAIL_F_NO_INTERRUPT, a hint that virtio-queue leaves out.
    fn interrupts_off(&self, memory: &GuestMemoryMmap) -> bool {
        let flags: Result<u16, _> = memory.load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed);
        flags.is_ok_and(|flags| u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0)
    }

    fn walk(&self, memory: &GuestMemoryMmap, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain { head, fault: None, readable: Vec::new(), writable: Vec::new() };
        let mut table =
            Table { addr: GuestAddress(self.queue.desc_table()), entries: self.size(), nested: false };
        let mut index = head;
        let mut sum = 0u32;
        for _ in 0..=self.size() {
            let descriptor = table.read(memory, index)?;
            if descriptor.refers_to_indirect_table() {
                table = table.enter(&descriptor, self.indirect)?;
                index = 0;
                continue;
            }
            // The loop's bound has one turn to spare for the descriptor that leads into an indirect table.
            if chain.readable.len() + chain.writable.len() >= usize::from(self.size()) {
                return Err(QueueError::ChainLength);
            }
            chain.add(memory, &descriptor, &mut sum);
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = descriptor.next();
        }
        Err(QueueError::ChainLength)
    }
}

impl Chain {
    fn add(&mut self, memory: &GuestMemoryMmap, descriptor: &Descriptor, sum: &mut u32) {
        let buffer = Buffer { addr: descriptor.addr(), len: descriptor.len() };
        let in_memory = buffer.len == 0
            || GuestMemoryBackend::get_slice(memory, buffer.addr, buffer.len as usize).is_ok();
        let fault = match sum.checked_add(buffer.len) {
            None => Some(ChainFault::TotalLength),
            Some(_) if !in_memory => Some(ChainFault::Address),
            Some(_) if !descriptor.is_write_only() && !self.writable.is_empty() => Some(ChainFault::Order),
            Some(_) => None,
        };
        *sum = sum.saturating_add(buffer.len);
        self.fault = self.fault.or(fault);
        if descriptor.is_write_only() {
            self.writable.push(buffer);
        } else {
            self.readable.push(buffer);
        }
    }
}

impl AsFd for DeviceQueue {
    /// The kick's descriptor.
    fn as_fd(&self) -> BorrowedFd<'_> {
        super::sys::event_fd(&self.kick)
    }
}

/// A descriptor table: the queue's own, or an indirect one.
struct Table {
    addr: GuestAddress,
    entries: u16,
    nested: bool,
}

impl Table {
    fn read(&self, memory: &GuestMemoryMmap, index: u16) -> Result<Descriptor, QueueError> {
        if index >= self.entries {
            return Err(QueueError::Index(index));
        }
        let offset = u64::from(index) * DESCRIPTOR_LEN;
        let addr = self.addr.0.checked_add(offset).ok_or(QueueError::Table)?;
        memory.read_obj(GuestAddress(addr)).map_err(|_| QueueError::Table)
    }

    /// The rules of virtio 1.2, section 2.7.5.3.
    fn enter(&self, descriptor: &Descriptor, negotiated: bool) -> Result<Self, QueueError> {
        let len = u64::from(descriptor.len());
        let entries = u16::try_from(len / DESCRIPTOR_LEN).map_err(|_| QueueError::Indirect)?;
        let sound = len != 0 && len.is_multiple_of(DESCRIPTOR_LEN);
        if self.nested || descriptor.has_next() || !negotiated || !sound {
            return Err(QueueError::Indirect);
        }
        Ok(Self { addr: descriptor.addr(), entries, nested: true })
    }
}

#[cfg(test)]
mod tests;
