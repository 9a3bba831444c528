//! A conversation with the kernel's routing tables.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, recvfrom, sendto,
    socket_with,
};

use super::message::{Malformed, Reply, Request, replies};

/// Holds any datagram that the kernel sends to a dump (NLMSG_GOODSIZE is a page; dumps use up to 32 KiB).
const BUFFER: usize = 32 << 10;

/// A conversation that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket failed.
    #[error("netlink socket failed")]
    Socket(#[source] io::Error),
    /// The kernel refused the request.
    #[error("the kernel refused")]
    Refused(#[source] io::Error),
    /// The kernel's reply makes no sense.
    #[error("the kernel's netlink reply is malformed")]
    Malformed,
}

/// A route netlink socket with its buffer.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        // NETLINK_ROUTE is protocol 0.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map_err(|error| NetlinkError::Socket(error.into()))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sends a request that changes something, and waits for its acknowledgement.
    pub(super) fn change(
        &mut self,
        kind: u16,
        flags: i32,
        body: &[u8],
        attributes: &[(u16, &[u8])],
    ) -> Result<(), NetlinkError> {
        self.send(kind, flags | libc::NLM_F_ACK, body, attributes)?;
        self.receive(|_, _| {})
    }

    /// Asks for all things of a kind, and hands each message to `each`.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        body: &[u8],
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        self.send(kind, libc::NLM_F_DUMP, body, &[])?;
        self.receive(each)
    }

    fn send(
        &mut self,
        kind: u16,
        flags: i32,
        body: &[u8],
        attributes: &[(u16, &[u8])],
    ) -> Result<(), NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let flags = u16::try_from(flags).map_err(|_| NetlinkError::Malformed)?;
        let request = attributes
            .iter()
            .fold(Request::new(kind, flags, self.sequence, body), |request, (kind, value)| {
                request.attribute(*kind, value)
            })
            .finish();
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &request, SendFlags::empty(), &kernel)
            .map(drop)
            .map_err(|error| NetlinkError::Socket(error.into()))
    }

    fn receive(&mut self, mut each: impl FnMut(u16, &[u8])) -> Result<(), NetlinkError> {
        loop {
            let (_, length, from) = match recvfrom(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(|error| NetlinkError::Socket(error.into()))?,
            };
            // A container with CAP_NET_ADMIN is in the same network and may send here; the kernel's port is 0.
            if !is_kernel(from) {
                continue;
            }
            let datagram = self.buffer.get(..length).ok_or(NetlinkError::Malformed)?;
            for reply in replies(datagram, self.sequence) {
                match reply.map_err(|Malformed| NetlinkError::Malformed)? {
                    Reply::Ack(Ok(())) | Reply::Done => return Ok(()),
                    Reply::Ack(Err(errno)) => {
                        return Err(NetlinkError::Refused(io::Error::from_raw_os_error(errno)));
                    }
                    Reply::Message { kind, payload } => each(kind, payload),
                }
            }
        }
    }
}

fn is_kernel(from: Option<SocketAddrAny>) -> bool {
    let address = from.and_then(|address| SocketAddrNetlink::try_from(address).ok());
    address.is_some_and(|address| address.pid() == 0)
}
