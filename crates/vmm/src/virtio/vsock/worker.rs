//! The thread: queues, the listener and every socket, in one event loop.

use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use vm_memory::GuestMemoryMmap;

use super::muxer::{Host, Muxer};
use super::packet::{FromGuest, HEADER_LEN};
use super::receiver::{Delivery, Receiver};
use super::{RX, TX};
use crate::virtio::device::{ActivateError, Activation, Interrupt};
use crate::virtio::queue::{Chain, DeviceQueue, QueueError};
use crate::virtio::worker::{Next, Poller, Serve, take_queue};

const LISTENER: u64 = 3;

/// Tokens from here on are sockets.
const FIRST_SOCKET: u64 = 16;

/// Packets in each direction in one turn.
const PACKETS_PER_TURN: usize = 64;

/// Pause before the next accept where no descriptor is left.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

pub(super) struct VsockWorker {
    muxer: Muxer,
    memory: GuestMemoryMmap,
    rx: DeviceQueue,
    tx: DeviceQueue,
    interrupt: Interrupt,
    /// Clients may wait at the listener.
    clients: bool,
    /// Since when the guest does not know of packets that were taken.
    tx_news: Option<Instant>,
}

/// How long the guest may go without hearing that its packets were taken. It only frees memory then, and each interrupt
/// costs it several exits: packets of our own, which soon follow, bring the news along.
const TX_NEWS: Duration = Duration::from_millis(10);

/// How one direction stands after its part of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing to do until an event.
    Idle,
    /// More to do at once.
    More,
    /// The guest's packets wait until it has taken its resets.
    Blocked,
}

impl Progress {
    fn more(more: bool) -> Self {
        if more { Self::More } else { Self::Idle }
    }
}

impl VsockWorker {
    /// Gives the host's side back where it fails.
    pub(super) fn new(
        host: Host,
        mut activation: Activation,
        poller: &Poller,
    ) -> Result<Self, (Host, ActivateError)> {
        match Self::queues(&host, &mut activation, poller) {
            Ok((rx, tx)) => Ok(Self {
                muxer: Muxer::new(host, poller.clone(), FIRST_SOCKET),
                memory: activation.memory,
                rx,
                tx,
                interrupt: activation.interrupt,
                clients: true,
                tx_news: None,
            }),
            Err(error) => Err((host, error)),
        }
    }

    fn queues(
        host: &Host,
        activation: &mut Activation,
        poller: &Poller,
    ) -> Result<(DeviceQueue, DeviceQueue), ActivateError> {
        let (rx, tx) = (take_queue(activation, RX)?, take_queue(activation, TX)?);
        poller.add(&rx, RX as u64, EpollFlags::EPOLLIN).map_err(ActivateError::Event)?;
        poller.add(&tx, TX as u64, EpollFlags::EPOLLIN).map_err(ActivateError::Event)?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        poller.add(&host.listener, LISTENER, edge).map_err(ActivateError::Event)?;
        Ok((rx, tx))
    }

    pub(super) fn into_host(self) -> Host {
        self.muxer.into_host()
    }

    /// Takes packets of the guest.
    fn transmit(&mut self) -> Result<Progress, QueueError> {
        for _ in 0..PACKETS_PER_TURN {
            if !self.muxer.takes_packets() {
                return Ok(Progress::Blocked);
            }
            let Some(chain) = self.tx.pop(&self.memory)? else {
                return Ok(Progress::more(self.tx.want_kick(&self.memory)?));
            };
            self.packet(&chain);
            self.tx.push(&self.memory, chain.head, 0)?;
        }
        Ok(Progress::More)
    }

    fn packet(&mut self, chain: &Chain) {
        let mut bytes = [0; HEADER_LEN];
        let header = (chain.fault.is_none() && chain.read(&self.memory, 0, &mut bytes))
            .then(|| FromGuest::parse(&bytes))
            .flatten();
        let Some(header) = header else {
            self.interrupt.count_error();
            return;
        };
        let Some(payload) = chain.readable_at(&self.memory, HEADER_LEN, header.len as usize) else {
            self.interrupt.count_error();
            return;
        };
        if payload.len() != header.len as usize {
            // Shorter than it says: as unknown as an operation (S24).
            self.interrupt.count_error();
            self.muxer.packet(&FromGuest { op: None, ..header }, payload);
            return;
        }
        self.muxer.packet(&header, payload);
    }

    /// Gives packets to the guest.
    fn receive(&mut self) -> Result<Progress, QueueError> {
        let memory = &self.memory;
        for _ in 0..PACKETS_PER_TURN {
            if !self.muxer.has_output() {
                return Ok(Progress::Idle);
            }
            let mut receiver = Receiver { queue: &mut self.rx, memory, interrupt: &self.interrupt };
            if self.muxer.deliver(&mut receiver)? == Delivery::Starved {
                return Ok(Progress::more(self.rx.want_kick(memory)?));
            }
        }
        Ok(Progress::More)
    }

    /// Interrupts the guest for packets that it got, and for those that it sent where it has not heard of them for long or
    /// of many.
    fn announce(&mut self) -> Result<(), QueueError> {
        let received = self.rx.unannounced() > 0;
        let many = self.tx.unannounced() >= self.tx.size() / 4;
        let mut wanted = self.rx.wants_interrupt(&self.memory)?;
        if self.tx.unannounced() == 0 {
            self.tx_news = None;
        } else if received || many || self.tx_news.is_some_and(|since| since.elapsed() >= TX_NEWS) {
            self.tx_news = None;
            wanted |= self.tx.wants_interrupt(&self.memory)?;
        } else if self.tx_news.is_none() {
            self.tx_news = Some(Instant::now());
        }
        if wanted {
            self.interrupt.used_buffers();
        }
        Ok(())
    }

    fn accept(&mut self) -> Next {
        if !self.clients {
            return Next::Wait;
        }
        match self.muxer.accept() {
            Ok(more) => {
                self.clients = more;
                if more { Next::Again } else { Next::Wait }
            }
            Err(error) => {
                tracing::warn!(
                    device = "vsock",
                    error = &error as &dyn std::error::Error,
                    "no client accepted"
                );
                Next::After(ACCEPT_AGAIN)
            }
        }
    }
}

impl Serve for VsockWorker {
    fn ready(&mut self, token: u64, events: EpollFlags) {
        match token {
            LISTENER => self.clients = true,
            token if token == RX as u64 => self.rx.drain_kick(),
            token if token == TX as u64 => self.tx.drain_kick(),
            socket => self.muxer.socket_ready(socket, events),
        }
    }

    fn turn(&mut self) -> Result<Next, QueueError> {
        let next = self.accept();
        let sent = self.transmit()?;
        let received = self.receive()?;
        self.announce()?;
        // Resets that left have made room for packets.
        let unblocked = sent == Progress::Blocked && self.muxer.takes_packets();
        let again = unblocked || sent == Progress::More || received == Progress::More;
        Ok(match next {
            _ if again => Next::Again,
            Next::Wait if self.tx_news.is_some() => Next::After(TX_NEWS),
            next => next,
        })
    }

    fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

#[cfg(test)]
mod tests;
