//! Puts packets into the guest's rx buffers.

use vm_memory::GuestMemoryMmap;

use super::connection::Connection;
use super::packet::{HEADER_LEN, Op, ToGuest};
use crate::virtio::device::Interrupt;
use crate::virtio::queue::{Chain, DeviceQueue, QueueError};
use crate::virtio::sys::GuestIoVec;

/// Bytes that one stream may send before the next one's turn.
const QUANTUM: usize = 64 * 1024;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    Done,
    /// The host had no bytes.
    Nothing,
    /// The guest has no buffers.
    Starved,
}

/// The rx queue.
pub(super) struct Receiver<'w> {
    pub(super) queue: &'w mut DeviceQueue,
    pub(super) memory: &'w GuestMemoryMmap,
    pub(super) interrupt: &'w Interrupt,
}

impl Receiver<'_> {
    /// Delivers a packet that is only a header.
    pub(super) fn control(&mut self, packet: ToGuest) -> Result<Delivery, QueueError> {
        let Some(chain) = self.next(true)? else { return Ok(Delivery::Starved) };
        self.finish(&chain, packet)?;
        Ok(Delivery::Done)
    }

    /// Reads from the host straight into as many buffers as the connection's batch says.
    pub(super) fn data(&mut self, connection: &mut Connection) -> Result<Delivery, QueueError> {
        let most = connection.room().min(QUANTUM);
        let memory = self.memory;
        let mut list = GuestIoVec::with_capacity(connection.batch);
        let mut chains = Vec::with_capacity(connection.batch);
        while chains.len() < connection.batch && list.len() < most {
            let Some(chain) = self.next(chains.is_empty())? else { break };
            let wanted = (chain.writable_len() as usize - HEADER_LEN).min(most - list.len());
            if !chain.append_writable(&mut list, memory, HEADER_LEN, wanted) {
                // `next` has looked at the addresses: the list is full.
                self.queue.unpop();
                break;
            }
            chains.push((chain, wanted));
        }
        if chains.is_empty() {
            return Ok(Delivery::Starved);
        }
        let mut left = connection.read(&mut list);
        let outcome = if left > 0 { Delivery::Done } else { Delivery::Nothing };
        for (chain, room) in chains {
            let len = left.min(room);
            if len == 0 {
                self.queue.unpop();
                continue;
            }
            left -= len;
            // At most QUANTUM.
            let packet = connection.header(Op::Data, 0, len as u32);
            self.finish(&chain, packet)?;
            connection.informed();
        }
        Ok(outcome)
    }

    /// The next usable buffer. An unusable one is given back empty, but only where it is the `first` of a batch: what was
    /// taken before it may have to be put back, which goes in order.
    fn next(&mut self, first: bool) -> Result<Option<Chain>, QueueError> {
        for _ in 0..self.queue.size() {
            let Some(chain) = self.queue.pop(self.memory)? else { return Ok(None) };
            if chain.fault.is_none() && chain.writable_len() as usize > HEADER_LEN {
                return Ok(Some(chain));
            }
            if !first {
                self.queue.unpop();
                return Ok(None);
            }
            self.interrupt.count_error();
            self.queue.push(self.memory, chain.head, 0)?;
        }
        Ok(None)
    }

    fn finish(&mut self, chain: &Chain, packet: ToGuest) -> Result<(), QueueError> {
        let bytes = packet.to_bytes();
        // The chain was checked, and memory does not go away.
        let written = if chain.write(self.memory, 0, &bytes) { HEADER_LEN as u32 + packet.len } else { 0 };
        self.queue.push(self.memory, chain.head, written)
    }
}
