//! The thread: both queues and the tap.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::GuestMemoryMmap;

use super::packet::check;
use super::receiver::{Receiver, Step};
use super::{HEADER_LEN, MAX_FRAME, RX, TX};
use crate::virtio::device::{ActivateError, Activation, Interrupt};
use crate::virtio::queue::{Chain, DeviceQueue, QueueError};
use crate::virtio::worker::{Next, Poller, Serve, take_queue};

const TAP: u64 = 2;

/// Frames of each direction in one turn.
const FRAMES_PER_TURN: usize = 64;

pub(super) struct NetWorker {
    tap: Arc<OwnedFd>,
    features: u64,
    memory: GuestMemoryMmap,
    receiver: Receiver,
    tx: DeviceQueue,
    interrupt: Interrupt,
    /// The tap may have frames. Edge-triggered, so that a starved guest does not keep us awake.
    readable: bool,
}

impl NetWorker {
    /// `longest_frame` is the longest that the tap hands out with the negotiated features.
    pub(super) fn new(
        tap: Arc<OwnedFd>,
        longest_frame: usize,
        mut activation: Activation,
        poller: &Poller,
    ) -> Result<Self, ActivateError> {
        let (rx, tx) = (take_queue(&mut activation, RX)?, take_queue(&mut activation, TX)?);
        poller.add(&rx, RX as u64, EpollFlags::EPOLLIN).map_err(ActivateError::Event)?;
        poller.add(&tx, TX as u64, EpollFlags::EPOLLIN).map_err(ActivateError::Event)?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        poller.add(&tap, TAP, edge).map_err(ActivateError::Event)?;
        let Activation { memory, features, interrupt, .. } = activation;
        let mergeable = features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0;
        let receiver = Receiver::new(rx, mergeable, longest_frame);
        Ok(Self { tap, features, memory, receiver, tx, interrupt, readable: true })
    }

    /// True: more waits.
    fn transmit(&mut self) -> Result<bool, QueueError> {
        for _ in 0..FRAMES_PER_TURN {
            let Some(chain) = self.tx.pop(&self.memory)? else { return self.tx.want_kick(&self.memory) };
            if !self.send(&chain) {
                self.interrupt.count_error();
            }
            self.tx.push(&self.memory, chain.head, 0)?;
        }
        Ok(true)
    }

    /// Sends one frame; false where the guest made it wrong. A tap that does not take it (link down, queue full) drops
    /// it, as a cable would.
    fn send(&self, chain: &Chain) -> bool {
        let mut header = [0; HEADER_LEN];
        if chain.fault.is_some() || !chain.read(&self.memory, 0, &mut header) {
            return false;
        }
        let frame_len = (chain.readable_len() as usize).saturating_sub(HEADER_LEN);
        let Ok(header) = check(&header, frame_len, self.features) else { return false };
        let Some(frame) = chain.readable_at(&self.memory, HEADER_LEN, MAX_FRAME) else { return false };
        let _ = frame.write_after(&header, self.tap.as_fd());
        true
    }

    /// True: more waits.
    fn receive(&mut self) -> Result<bool, QueueError> {
        if !self.readable {
            return Ok(false);
        }
        for _ in 0..FRAMES_PER_TURN {
            match self.receiver.step(&self.memory, &self.interrupt, self.tap.as_fd())? {
                Step::Frame => {}
                Step::Empty => {
                    self.readable = false;
                    return Ok(false);
                }
                Step::Starved => return self.receiver.queue().want_kick(&self.memory),
            }
        }
        Ok(true)
    }
}

impl Serve for NetWorker {
    fn ready(&mut self, token: u64, _events: EpollFlags) {
        match token {
            TAP => self.readable = true,
            token if token == RX as u64 => self.receiver.queue().drain_kick(),
            _ => self.tx.drain_kick(),
        }
    }

    fn turn(&mut self) -> Result<Next, QueueError> {
        let more = self.transmit()? | self.receive()?;
        let sent = self.tx.wants_interrupt(&self.memory)?;
        let received = self.receiver.queue().wants_interrupt(&self.memory)?;
        if sent || received {
            self.interrupt.used_buffers();
        }
        Ok(if more { Next::Again } else { Next::Wait })
    }

    fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

#[cfg(test)]
mod tests;
