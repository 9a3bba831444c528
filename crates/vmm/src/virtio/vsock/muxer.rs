//! All streams of the guest: finds them by ports and by socket, makes and ends them.
//!
//! Nothing here blocks, and everything is bounded: streams and handshakes together by [`MAX_CONNECTIONS`], handshakes
//! by [`MAX_HANDSHAKES`], resets for what does not exist by [`MAX_RESETS`] (the tx queue then waits).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::epoll::EpollFlags;

use super::connection::{Connection, Fate, Output, READ_EVENTS};
use super::handshake::{Handshake, Progress};
use super::packet::{FromGuest, Op, Ports, ToGuest};
use super::receiver::{Delivery, Receiver};
use super::{BUF_ALLOC, FIRST_CLIENT_PORT, MAX_CONNECTIONS, MAX_HANDSHAKES, MAX_RESETS};
use crate::virtio::queue::QueueError;
use crate::virtio::sys::GuestIoVec;
use crate::virtio::worker::Poller;

/// Clients taken from the listener in one turn.
const ACCEPTS_PER_TURN: usize = 64;

/// The host's side, which outlives a guest's driver.
pub(super) struct Host {
    pub(super) listener: UnixListener,
    /// Sockets that the guest has not yet asked for.
    pub(super) ports: HashMap<u32, UnixStream>,
}

/// Number of a socket in the poller; never used twice.
type Id = u64;

pub(super) struct Muxer {
    host: Host,
    poller: Poller,
    next_id: Id,
    next_port: u32,
    /// Ids grow, so the first is the oldest.
    handshakes: BTreeMap<Id, Handshake>,
    connections: HashMap<Id, Connection>,
    by_ports: HashMap<Ports, Id>,
    /// Connections with a packet for the guest, in turn.
    ready: VecDeque<Id>,
    resets: VecDeque<Ports>,
}

impl Muxer {
    /// Ids of sockets begin at `first_id`.
    pub(super) fn new(host: Host, poller: Poller, first_id: Id) -> Self {
        Self {
            host,
            poller,
            next_id: first_id,
            next_port: FIRST_CLIENT_PORT,
            handshakes: BTreeMap::new(),
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
        }
    }

    /// Ends every stream and gives the host's side back.
    pub(super) fn into_host(self) -> Host {
        self.host
    }

    /// Takes clients from the listener. True: more may wait.
    ///
    /// # Errors
    /// No descriptor is left for a client that waits.
    pub(super) fn accept(&mut self) -> io::Result<bool> {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.host.listener.accept() {
                Ok((socket, _)) => self.greet(socket),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(false),
                    // The client is gone again, or a signal came: the next one.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(true)
    }

    /// A socket has news.
    pub(super) fn socket_ready(&mut self, id: Id, events: EpollFlags) {
        if self.handshakes.contains_key(&id) {
            self.handshake(id, events);
        } else if let Some(connection) = self.connections.get_mut(&id) {
            let fate = connection.socket_ready(events);
            self.settle(id, fate);
        }
    }

    /// False: the guest must first take some of its resets.
    pub(super) fn takes_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// A packet of the guest, with the bytes that its header promises.
    pub(super) fn packet(&mut self, header: &FromGuest, payload: GuestIoVec<'_>) {
        if let Some(id) = self.by_ports.get(&header.ports).copied()
            && let Some(connection) = self.connections.get_mut(&id)
        {
            let fate = connection.packet(header, payload);
            self.settle(id, fate);
            return;
        }
        match header.op {
            Some(Op::Request) => self.request(header),
            // A reset is never answered by one.
            Some(Op::Reset) => {}
            _ => self.resets.push_back(header.ports),
        }
    }

    /// True where a packet for the guest is due.
    pub(super) fn has_output(&self) -> bool {
        !self.ready.is_empty() || !self.resets.is_empty()
    }

    /// Delivers one packet, or what one connection may send at once.
    pub(super) fn deliver(&mut self, receiver: &mut Receiver<'_>) -> Result<Delivery, QueueError> {
        if let Some(ports) = self.resets.front() {
            let delivery = receiver.control(ToGuest::reset(*ports))?;
            if delivery == Delivery::Done {
                self.resets.pop_front();
            }
            return Ok(delivery);
        }
        let Some(id) = self.ready.pop_front() else { return Ok(Delivery::Nothing) };
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(Delivery::Nothing) };
        connection.queued = false;
        let (delivery, fate) = match connection.output() {
            None => (Delivery::Nothing, Fate::Keep),
            Some(Output::Data) => (receiver.data(connection)?, Fate::Keep),
            Some(Output::Control(op, shutdown)) => {
                let packet = connection.header(op, shutdown.flags(), 0);
                let delivery = receiver.control(packet)?;
                let sent = delivery == Delivery::Done;
                (delivery, if sent { connection.sent(op, shutdown) } else { Fate::Keep })
            }
        };
        self.settle(id, fate);
        Ok(delivery)
    }

    /// Begins a client's handshake, which is often over at once: the line came with the connection.
    fn greet(&mut self, socket: UnixStream) {
        if self.handshakes.len() >= MAX_HANDSHAKES {
            // A client that says nothing must not keep others out.
            if let Some((_, oldest)) = self.handshakes.pop_first() {
                let _ = self.poller.delete(&oldest);
            }
        }
        if self.connections.len() + self.handshakes.len() >= MAX_CONNECTIONS {
            return;
        }
        let id = self.next_id;
        if self.poller.add(&socket, id, READ_EVENTS).is_err() {
            return;
        }
        self.next_id += 1;
        self.handshakes.insert(id, Handshake::new(socket));
        self.handshake(id, EpollFlags::empty());
    }

    fn handshake(&mut self, id: Id, events: EpollFlags) {
        let gone = events.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        match self.handshakes.get(&id).map(Handshake::advance) {
            Some(Progress::Port(port)) => self.connect(id, port),
            Some(Progress::Wait) if !gone => {}
            _ => {
                if let Some(handshake) = self.handshakes.remove(&id) {
                    let _ = self.poller.delete(&handshake);
                }
            }
        }
    }

    /// A client named a guest port: ask the guest.
    fn connect(&mut self, id: Id, guest: u32) {
        let Some(handshake) = self.handshakes.remove(&id) else { return };
        let socket = handshake.into_socket();
        let Some(ports) = self.free_ports(guest) else {
            let _ = self.poller.delete(&socket);
            return;
        };
        let connection = Connection::requested(ports, socket, self.alloc());
        self.insert(id, connection);
    }

    /// Ports of a new stream to `guest`. So many host ports exist that a free one is found at once.
    fn free_ports(&mut self, guest: u32) -> Option<Ports> {
        (0..=MAX_CONNECTIONS).find_map(|_| {
            let host = self.next_port;
            self.next_port = if host == u32::MAX - 1 { FIRST_CLIENT_PORT } else { host + 1 };
            let ports = Ports { guest, host };
            let taken = self.by_ports.contains_key(&ports) || self.host.ports.contains_key(&host);
            (!taken).then_some(ports)
        })
    }

    /// The guest asks for a host port: it gets the port's socket if that is still there.
    fn request(&mut self, header: &FromGuest) {
        let room = self.connections.len() + self.handshakes.len() < MAX_CONNECTIONS;
        let socket = if room { self.host.ports.remove(&header.ports.host) } else { None };
        let Some(socket) = socket else {
            self.resets.push_back(header.ports);
            return;
        };
        let id = self.next_id;
        let mut connection = Connection::accepted(header.ports, socket, self.alloc());
        let sound = connection.request(header);
        if !sound || self.poller.add(&connection, id, connection.interest()).is_err() {
            self.resets.push_back(header.ports);
            return;
        }
        self.next_id += 1;
        self.insert(id, connection);
    }

    fn insert(&mut self, id: Id, connection: Connection) {
        self.by_ports.insert(connection.ports(), id);
        self.connections.insert(id, connection);
        self.settle(id, Fate::Keep);
    }

    /// Credit of one more stream.
    fn alloc(&self) -> u32 {
        let streams = self.connections.len();
        BUF_ALLOC.iter().find(|(below, _)| streams < *below).map_or(0, |(_, alloc)| *alloc)
    }

    /// Does what a step of a connection asks for.
    fn settle(&mut self, id: Id, fate: Fate) {
        match fate {
            Fate::Keep => self.keep(id),
            Fate::Forget => self.forget(id, false),
            Fate::Reset => self.forget(id, true),
            Fate::Linger { reset } => {
                if let Some(connection) = self.connections.get(&id) {
                    let ports = connection.ports();
                    self.by_ports.remove(&ports);
                    if reset {
                        self.resets.push_back(ports);
                    }
                }
                self.keep(id);
            }
        }
    }

    fn keep(&mut self, id: Id) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let interest = connection.interest();
        if connection.change_interest(interest) && self.poller.modify(&*connection, id, interest).is_err() {
            // Without its events the stream would hang.
            self.forget(id, true);
            return;
        }
        if !connection.queued && connection.output().is_some() {
            connection.queued = true;
            self.ready.push_back(id);
        }
    }

    fn forget(&mut self, id: Id, reset: bool) {
        let Some(connection) = self.connections.remove(&id) else { return };
        // The owner of a host port's socket may have it open too: closing ours would leave it watched.
        let _ = self.poller.delete(&connection);
        let ports = connection.ports();
        if self.by_ports.get(&ports) == Some(&id) {
            self.by_ports.remove(&ports);
        }
        if reset {
            self.resets.push_back(ports);
        }
    }

    /// Streams, for tests of the bounds.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.connections.len(), self.handshakes.len(), self.by_ports.len())
    }
}
