//! Puts frames into the guest's rx buffers.
//!
//! Buffers are taken off the ring ahead of a frame, as many as the longest frame needs, and kept for the next one. While
//! the guest has fewer, a frame is read into a bounce buffer and waits there for as many as it needs. One that all
//! buffers of the queue together cannot hold is dropped, so a frame never blocks those behind it for good (V02).

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use vm_memory::GuestMemoryMmap;

use super::packet::NUM_BUFFERS_AT;
use super::{HEADER_LEN, MAX_FRAME};
use crate::virtio::device::Interrupt;
use crate::virtio::queue::{Chain, DeviceQueue, QueueError};
use crate::virtio::sys::GuestIoVec;

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A frame went to the guest, or was dropped.
    Frame,
    /// The tap has none.
    Empty,
    /// The guest has too few buffers.
    Starved,
}

pub(super) struct Receiver {
    queue: DeviceQueue,
    /// A frame may take several buffers (VIRTIO_NET_F_MRG_RXBUF).
    mergeable: bool,
    /// Header and longest frame that the tap may hand out.
    longest: usize,
    /// Taken off the ring and not used yet.
    ready: VecDeque<Chain>,
    /// Bytes of `ready`.
    room: usize,
    /// Header and frame that wait for buffers.
    held: Option<Vec<u8>>,
}

impl Receiver {
    pub(super) fn new(queue: DeviceQueue, mergeable: bool, longest_frame: usize) -> Self {
        let longest = HEADER_LEN + longest_frame.min(MAX_FRAME);
        Self { queue, mergeable, longest, ready: VecDeque::new(), room: 0, held: None }
    }

    pub(super) fn queue(&mut self) -> &mut DeviceQueue {
        &mut self.queue
    }

    /// Moves one frame from the tap to the guest.
    pub(super) fn step(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
        tap: BorrowedFd<'_>,
    ) -> Result<Step, QueueError> {
        if let Some(frame) = self.held.take() {
            return self.deliver_held(memory, interrupt, frame);
        }
        self.gather(memory, interrupt, self.longest)?;
        if self.room == 0 {
            return Ok(Step::Starved);
        }
        if self.room_for_frame() < self.longest {
            return self.bounce(memory, interrupt, tap);
        }
        let mut list = GuestIoVec::with_capacity(self.ready.len());
        let taken = if self.mergeable { self.ready.len() } else { 1 };
        for chain in self.ready.iter().take(taken) {
            // A list that is full holds more than any frame.
            if !chain.append_writable(&mut list, memory, 0, chain.writable_len() as usize) {
                break;
            }
        }
        let capacity = list.len();
        match list.read(tap) {
            Ok(len) if len > HEADER_LEN && len < capacity => {
                self.finish(memory, len)?;
                Ok(Step::Frame)
            }
            // Cut short, or no frame at all.
            Ok(_) => Ok(Step::Frame),
            Err(_) => Ok(Step::Empty),
        }
    }

    /// Takes buffers off the ring until they hold `wanted` bytes. Unusable ones are given back empty.
    fn gather(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
        wanted: usize,
    ) -> Result<(), QueueError> {
        while self.room <= wanted && self.ready.len() < usize::from(self.queue.size()) {
            let Some(chain) = self.queue.pop(memory)? else { return Ok(()) };
            let len = chain.writable_len() as usize;
            if chain.fault.is_some() || len < HEADER_LEN {
                interrupt.count_error();
                self.queue.push(memory, chain.head, 0)?;
                continue;
            }
            self.room += len;
            self.ready.push_back(chain);
        }
        Ok(())
    }

    /// Bytes that the next frame may have.
    fn room_for_frame(&self) -> usize {
        if self.mergeable {
            // One to spare tells a frame that fits from one that was cut.
            return self.room.saturating_sub(1);
        }
        self.ready.front().map_or(0, |chain| chain.writable_len() as usize).saturating_sub(1)
    }

    /// Reads a frame though the guest could not take the longest.
    fn bounce(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
        tap: BorrowedFd<'_>,
    ) -> Result<Step, QueueError> {
        let mut frame = vec![0; self.longest];
        match nix::unistd::read(tap, &mut frame) {
            Ok(len) if len > HEADER_LEN => {
                frame.truncate(len);
                self.deliver_held(memory, interrupt, frame)
            }
            Ok(_) => Ok(Step::Frame),
            Err(_) => Ok(Step::Empty),
        }
    }

    fn deliver_held(
        &mut self,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
        frame: Vec<u8>,
    ) -> Result<Step, QueueError> {
        self.gather(memory, interrupt, frame.len())?;
        if self.room_for_frame() < frame.len() {
            let all = self.ready.len() == usize::from(self.queue.size());
            let alone = !self.mergeable && !self.ready.is_empty();
            if all || alone {
                // More buffers cannot come, or would not help.
                return Ok(Step::Frame);
            }
            self.held = Some(frame);
            return Ok(Step::Starved);
        }
        let mut done = 0;
        for chain in &self.ready {
            let len = (chain.writable_len() as usize).min(frame.len() - done);
            let part = frame.get(done..done + len).unwrap_or_default();
            if part.is_empty() || !chain.write(memory, 0, part) {
                break;
            }
            done += len;
        }
        self.finish(memory, frame.len())?;
        Ok(Step::Frame)
    }

    /// Gives the buffers that hold `len` bytes to the driver.
    fn finish(&mut self, memory: &GuestMemoryMmap, len: usize) -> Result<(), QueueError> {
        let mut left = len;
        let mut count = 0u16;
        for chain in &self.ready {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(chain.writable_len() as usize);
            count += 1;
        }
        if let Some(first) = self.ready.front() {
            // Checked to hold a header.
            first.write(memory, NUM_BUFFERS_AT, &count.to_le_bytes());
        }
        let mut left = len;
        for chain in self.ready.drain(..usize::from(count)) {
            let room = chain.writable_len() as usize;
            let used = left.min(room);
            left -= used;
            self.room -= room;
            // A frame is shorter than 2^17 bytes.
            self.queue.push(memory, chain.head, used as u32)?;
        }
        Ok(())
    }
}
