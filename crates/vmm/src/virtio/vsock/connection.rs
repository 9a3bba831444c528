//! One stream.
//!
//! ```text
//!  host client:  Requested --RESPONSE--> Established --+--> finished (both sides told) --> gone
//!  guest:                     REQUEST -> Established --'
//!                                            |  guest closed, bytes left for the host
//!                                            '--> Lingering --> gone
//! ```
//!
//! The two directions end one by one (S27). Guest to host: SHUTDOWN(send) becomes SHUT_WR once every byte is with the
//! socket. Host to guest: end of file becomes SHUTDOWN(send) once every byte is with the guest. A host that does
//! not read any more (EPIPE) becomes SHUTDOWN(receive), which the guest's writer sees as EPIPE.
//!
//! What the guest is to be told is state, not a queue: nothing here grows but `pending`, and that by the credit.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown as SocketShutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{MsgFlags, send};

use super::credit::{Credit, Violation};
use super::packet::{FromGuest, Op, Ports, Shutdown, ToGuest};
use crate::virtio::sys::GuestIoVec;

/// What every socket is watched for. Edge-triggered: what a full guest leaves in the socket must not keep us awake.
pub(super) const READ_EVENTS: EpollFlags =
    EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP).union(EpollFlags::EPOLLET);

/// What the muxer does with a connection after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It lives on.
    Keep,
    /// The guest does not know it any more: forget it.
    Forget,
    /// As `Forget`, and the guest is to get a reset.
    Reset,
    /// The guest closed it and gets a reset for that; the host is still to get the pending bytes.
    Linger {
        /// Whether the reset is due.
        reset: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A host client waits for the guest's answer.
    Requested,
    Established,
    /// The guest is done with it.
    Lingering,
}

/// A packet that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// Has no bytes of the stream.
    Control(Op, Shutdown),
    /// As many bytes as the socket, the credit and the guest's buffers allow.
    Data,
}

/// Packets that wait for an rx buffer.
#[derive(Debug, Default)]
struct Due {
    request: bool,
    response: bool,
    credit_update: bool,
}

pub(super) struct Connection {
    ports: Ports,
    socket: UnixStream,
    state: State,
    credit: Credit,
    /// From the guest, not yet taken by the socket.
    pending: VecDeque<u8>,
    /// The socket may have bytes or an end of file for us.
    readable: bool,
    /// The host end is closed in both directions.
    hung_up: bool,
    /// Everything from the host was read.
    end_of_file: bool,
    /// The host end takes no more bytes.
    refuses_bytes: bool,
    /// SHUT_WR was passed on.
    write_shut: bool,
    guest: Shutdown,
    told: Shutdown,
    due: Due,
    /// What the poller knows.
    watched: EpollFlags,
    /// Buffers for the next read: more while the host has more than they hold.
    pub(super) batch: usize,
    /// The muxer has it in its list of connections with output.
    pub(super) queued: bool,
}

impl Connection {
    /// A stream that a host client asks for.
    pub(super) fn requested(ports: Ports, socket: UnixStream, alloc: u32) -> Self {
        let due = Due { request: true, ..Due::default() };
        Self::new(ports, socket, State::Requested, alloc, due)
    }

    /// A stream that the guest asks for.
    pub(super) fn accepted(ports: Ports, socket: UnixStream, alloc: u32) -> Self {
        let due = Due { response: true, ..Due::default() };
        Self::new(ports, socket, State::Established, alloc, due)
    }

    fn new(ports: Ports, socket: UnixStream, state: State, alloc: u32, due: Due) -> Self {
        Self {
            ports,
            socket,
            state,
            credit: Credit::new(alloc),
            pending: VecDeque::new(),
            readable: true,
            hung_up: false,
            end_of_file: false,
            refuses_bytes: false,
            write_shut: false,
            guest: Shutdown::default(),
            told: Shutdown::default(),
            due,
            watched: READ_EVENTS,
            batch: 1,
            queued: false,
        }
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// A packet of the guest for this stream; `payload` has the bytes that its header promises.
    pub(super) fn packet(&mut self, header: &FromGuest, payload: GuestIoVec<'_>) -> Fate {
        if self.credit.note_peer(header.buf_alloc, header.fwd_cnt).is_err() {
            return Fate::Reset;
        }
        match (header.op, self.state) {
            (Some(Op::Reset), _) => self.guest_reset(),
            (Some(Op::Response), State::Requested) => self.establish(),
            (Some(Op::Data), State::Established) if !self.guest.send => {
                self.data(payload).map_or(Fate::Reset, |()| Fate::Keep)
            }
            (Some(Op::Shutdown), State::Established) => self.guest_shutdown(header.flags),
            (Some(Op::CreditUpdate), State::Established) => Fate::Keep,
            (Some(Op::CreditRequest), State::Established) => {
                self.due.credit_update = true;
                Fate::Keep
            }
            // A second request, bytes after a shutdown, an answer that nobody asked for, an unknown operation.
            _ => Fate::Reset,
        }
    }

    /// The socket has news.
    pub(super) fn socket_ready(&mut self, events: EpollFlags) -> Fate {
        let closed = events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        self.hung_up |= closed;
        if closed || events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP) {
            self.readable = true;
        }
        if closed && self.state == State::Requested {
            // The client did not wait for the guest's answer. The guest knows of the request only if it was sent.
            return if self.due.request { Fate::Forget } else { Fate::Reset };
        }
        if events.contains(EpollFlags::EPOLLOUT) || closed {
            self.flush();
        }
        let over = self.state == State::Lingering && (self.pending.is_empty() || closed);
        if over { Fate::Forget } else { Fate::Keep }
    }

    /// What the socket is watched for.
    pub(super) fn interest(&self) -> EpollFlags {
        // For writing only while bytes wait: else every read of the host would wake us.
        if self.pending.is_empty() { READ_EVENTS } else { READ_EVENTS | EpollFlags::EPOLLOUT }
    }

    /// Whether the poller has to be told of a new interest.
    pub(super) fn change_interest(&mut self, interest: EpollFlags) -> bool {
        std::mem::replace(&mut self.watched, interest) != interest
    }

    /// The guest's request for this stream; false where it breaks flow control from the first.
    pub(super) fn request(&mut self, header: &FromGuest) -> bool {
        self.credit.note_peer(header.buf_alloc, header.fwd_cnt).is_ok()
    }

    /// The next packet for the guest.
    pub(super) fn output(&self) -> Option<Output> {
        let control = |op| Some(Output::Control(op, Shutdown::default()));
        match self.state {
            State::Requested if self.due.request => control(Op::Request),
            State::Requested | State::Lingering => None,
            State::Established if self.due.response => control(Op::Response),
            State::Established if self.may_read() && self.credit.room() > 0 => Some(Output::Data),
            State::Established if self.shutdown_due() != self.told => {
                Some(Output::Control(Op::Shutdown, self.shutdown_due()))
            }
            State::Established if self.due.credit_update || self.credit.update_due() => {
                control(Op::CreditUpdate)
            }
            State::Established => None,
        }
    }

    /// The header of a packet with `len` bytes.
    pub(super) fn header(&self, op: Op, flags: u32, len: u32) -> ToGuest {
        let (buf_alloc, fwd_cnt) = self.credit.terms();
        ToGuest { ports: self.ports, op, len, flags, buf_alloc, fwd_cnt }
    }

    /// A header is with the guest, which so knows our side of the credit.
    pub(super) fn informed(&mut self) {
        self.credit.informed();
        self.due.credit_update = false;
    }

    /// The packet of [`Connection::output`] without bytes is with the guest.
    pub(super) fn sent(&mut self, op: Op, shutdown: Shutdown) -> Fate {
        self.informed();
        match op {
            Op::Request => self.due.request = false,
            Op::Response => self.due.response = false,
            Op::Shutdown => self.told = shutdown,
            _ => {}
        }
        // Nothing goes either way any more: the guest's own reset for it will find nothing, which is fine.
        if self.told.both() { Fate::Forget } else { Fate::Keep }
    }

    /// Bytes that the guest would take now.
    pub(super) fn room(&self) -> usize {
        self.credit.room() as usize
    }

    /// Reads from the host into the guest's buffers; 0 where there is nothing now. Not more than [`Connection::room`].
    pub(super) fn read(&mut self, list: &mut GuestIoVec<'_>) -> usize {
        match list.receive(self.socket.as_fd()) {
            Ok(0) => self.end_of_file = true,
            Ok(count) => {
                self.batch = if count == list.len() { (self.batch * 2).min(16) } else { 1 };
                self.credit.send(count as u32);
                return count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                // The host closed with bytes of ours unread: neither direction goes on.
                self.end_of_file = true;
                self.refuses_bytes = true;
            }
        }
        0
    }

    fn establish(&mut self) -> Fate {
        self.state = State::Established;
        let line = format!("OK {}\n", self.ports.host);
        // Nothing was written before, so the socket has room for a line, or its reader is gone.
        match write(&self.socket, line.as_bytes()) {
            Ok(count) if count == line.len() => Fate::Keep,
            _ => Fate::Reset,
        }
    }

    fn data(&mut self, mut list: GuestIoVec<'_>) -> Result<(), Violation> {
        // The header's length is a u32, and the payload has that length.
        self.credit.receive(u32::try_from(list.len()).map_err(|_| Violation)?)?;
        if self.pending.is_empty() && !self.refuses_bytes {
            match list.send(self.socket.as_fd()) {
                Ok(count) => {
                    self.credit.forward(count);
                    list.advance(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.refuse(),
            }
        }
        if self.refuses_bytes {
            // The guest learns it by a shutdown; what is under way until then goes nowhere.
            self.credit.forward(list.len());
        } else if list.len() > 0 {
            list.copy_out(|bytes| self.pending.extend(bytes));
        }
        Ok(())
    }

    fn flush(&mut self) {
        while !self.pending.is_empty() {
            match write(&self.socket, self.pending.as_slices().0) {
                Ok(count) => {
                    self.credit.forward(count);
                    self.pending.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.refuse(),
            }
        }
        // A stream that once was slow need not keep the memory.
        self.pending = VecDeque::new();
        self.pass_shutdown();
    }

    fn refuse(&mut self) {
        self.refuses_bytes = true;
        self.credit.forward(self.pending.len());
        self.pending.clear();
    }

    fn guest_shutdown(&mut self, flags: u32) -> Fate {
        self.guest = self.guest.union(Shutdown::from_flags(flags));
        if self.guest.both() {
            return self.linger(true);
        }
        if self.guest.receive {
            // A host that still writes gets EPIPE. Where it is gone there is nobody to tell.
            let _ = self.socket.shutdown(SocketShutdown::Read);
        }
        self.pass_shutdown();
        Fate::Keep
    }

    fn guest_reset(&mut self) -> Fate {
        if self.guest.send { self.linger(false) } else { Fate::Forget }
    }

    fn linger(&mut self, reset: bool) -> Fate {
        if self.pending.is_empty() {
            return if reset { Fate::Reset } else { Fate::Forget };
        }
        self.state = State::Lingering;
        Fate::Linger { reset }
    }

    fn pass_shutdown(&mut self) {
        if self.guest.send && self.pending.is_empty() && !self.write_shut {
            self.write_shut = true;
            // Where the host is gone there is nobody to tell.
            let _ = self.socket.shutdown(SocketShutdown::Write);
        }
    }

    fn may_read(&self) -> bool {
        self.readable && !self.end_of_file && !self.guest.receive
    }

    fn shutdown_due(&self) -> Shutdown {
        let send = self.end_of_file || (self.hung_up && self.guest.receive);
        Shutdown { send, receive: self.refuses_bytes || (send && self.hung_up) }.union(self.told)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Writes without blocking and without SIGPIPE.
fn write(socket: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EINTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}
