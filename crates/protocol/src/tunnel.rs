//! Tunnels: connections between the sandbox's network namespace on the host and the guest's loopback.
//!
//! The guest has the links of the namespace, but each side has a loopback of its own. Kubernetes' port-forward connects to that
//! of the namespace, and Docker's name server listens there. Either is led to the other side:
//!
//! ```text
//! host -> VMM    "CONNECT 1026\n", answered as in module stream
//! host -> agent  magic "NCT1", u8 kind, u8 0, u16 port, 16 bytes address: what the tunnel leads to (Client: the
//!                number of a socket, in the last four)
//! agent -> host  one byte: 0, or the errno that kept the agent from it
//! then, Connect: the bytes of the connection, both ways; the end of either direction is passed on (SHUT_WR)
//!       Client:  the same, of a client of a socket in the guest; the agent's one byte comes with the client
//!       Names:   messages of name queries and answers, see `Message`
//! ```
//!
//! Numbers are in network byte order. Only the host opens tunnels, so a guest can ask the host for nothing but the name
//! queries of a tunnel that the host has opened for them, and connections to the sockets that a container was given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// First bytes of a tunnel.
pub const MAGIC: [u8; 4] = *b"NCT1";

/// Bytes of the hello.
pub const HELLO_LEN: usize = 24;

/// Answer of an agent that has done what the hello asks.
pub const OPEN: u8 = 0;

/// Tunnels that an agent has at once, and that a sandbox opens at once.
pub const MAX_TUNNELS: usize = 128;

/// Seconds for the hello to come, and for the agent to reach what a tunnel leads to.
pub const OPEN_TIMEOUT_S: u64 = 10;

/// What a tunnel leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    /// A connection to this address of the guest's loopback.
    Connect(SocketAddr),
    /// The queries that containers send to port 53 of this address of the guest's loopback.
    Names(Ipv4Addr),
    /// The next client of the guest's socket of this number (`AddSocketRequest`). The agent answers when there is one.
    Client(u32),
}

/// A hello that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The first four bytes are not [`MAGIC`].
    #[error("tunnel does not begin with the magic bytes")]
    BadMagic,
    /// No such kind of tunnel.
    #[error("tunnel is of an unknown kind ({0})")]
    BadKind(u8),
    /// An address that is not of a loopback.
    #[error("tunnel leads to {0}, which is no loopback address")]
    NoLoopback(IpAddr),
}

const CONNECT: u8 = 1;
const NAMES: u8 = 2;
const CLIENT: u8 = 3;

impl Tunnel {
    /// The bytes that open it. IPv4 addresses are mapped into IPv6 (RFC 4291, section 2.5.5.2).
    pub fn hello(&self) -> [u8; HELLO_LEN] {
        let (kind, port, address) = match self {
            Self::Connect(to) => (CONNECT, to.port(), to.ip()),
            Self::Names(address) => (NAMES, 0, IpAddr::V4(*address)),
            Self::Client(number) => (CLIENT, 0, IpAddr::V6(Ipv6Addr::from_bits(u128::from(*number)))),
        };
        let address = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let mut out = [0; HELLO_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = kind;
        out[6..8].copy_from_slice(&port.to_be_bytes());
        out[8..].copy_from_slice(&address.octets());
        out
    }

    /// Parses the first bytes of a tunnel.
    ///
    /// # Errors
    /// [`HelloError`] where they ask for nothing that there is.
    pub fn from_hello(bytes: &[u8; HELLO_LEN]) -> Result<Self, HelloError> {
        let [m0, m1, m2, m3, kind, _, p0, p1, address @ ..] = bytes;
        if [*m0, *m1, *m2, *m3] != MAGIC {
            return Err(HelloError::BadMagic);
        }
        if *kind == CLIENT {
            let [.., n0, n1, n2, n3] = *address;
            return Ok(Self::Client(u32::from_be_bytes([n0, n1, n2, n3])));
        }
        let address = Ipv6Addr::from(*address).to_canonical();
        if !address.is_loopback() {
            return Err(HelloError::NoLoopback(address));
        }
        match (*kind, address) {
            (CONNECT, _) => Ok(Self::Connect(SocketAddr::new(address, u16::from_be_bytes([*p0, *p1])))),
            (NAMES, IpAddr::V4(address)) => Ok(Self::Names(address)),
            (kind, _) => Err(HelloError::BadKind(kind)),
        }
    }
}

/// Bytes before the DNS message: u32 tag, u8 transport, u8 0, u16 length.
pub const HEADER_LEN: usize = 8;

/// Queries that wait for their answer at once, on either side; the oldest makes room.
pub const MAX_QUERIES: usize = 64;

/// Seconds after which a query is given up.
pub const QUERY_TIMEOUT_S: u64 = 10;

/// How a DNS message travels (RFC 1035, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// On a connection, after its length.
    Tcp,
}

/// Head of a message of a names tunnel. Queries go to the host, each with a tag that comes back with its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Drawn by the agent.
    pub tag: u32,
    /// How the container has sent it.
    pub transport: Transport,
    /// Bytes of the DNS message that follows.
    pub length: u16,
}

impl Header {
    /// As it goes over the tunnel.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [t0, t1, t2, t3] = self.tag.to_be_bytes();
        let [l0, l1] = self.length.to_be_bytes();
        let transport = match self.transport {
            Transport::Udp => 0,
            Transport::Tcp => 1,
        };
        [t0, t1, t2, t3, transport, 0, l0, l1]
    }

    /// Parses one; none where the transport is unknown, after which nothing on the tunnel can be trusted.
    pub fn from_bytes(bytes: [u8; HEADER_LEN]) -> Option<Self> {
        let [t0, t1, t2, t3, transport, _, l0, l1] = bytes;
        let transport = match transport {
            0 => Transport::Udp,
            1 => Transport::Tcp,
            _ => return None,
        };
        Some(Self {
            tag: u32::from_be_bytes([t0, t1, t2, t3]),
            transport,
            length: u16::from_be_bytes([l0, l1]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hello_round_trips(port: u16, low: [u8; 3], number: u32) {
            let v4 = Ipv4Addr::new(127, low[0], low[1], low[2]);
            for tunnel in [
                Tunnel::Connect(SocketAddr::new(v4.into(), port)),
                Tunnel::Connect(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)),
                Tunnel::Names(v4),
                Tunnel::Client(number),
            ] {
                prop_assert_eq!(Tunnel::from_hello(&tunnel.hello()), Ok(tunnel));
            }
        }

        #[test]
        fn any_bytes_parse_or_not_without_panic(bytes: [u8; HELLO_LEN], header: [u8; HEADER_LEN]) {
            let _ = Tunnel::from_hello(&bytes);
            if let Some(header) = Header::from_bytes(header) {
                prop_assert_eq!(Header::from_bytes(header.to_bytes()), Some(header));
            }
        }
    }

    #[test]
    fn only_loopback_is_led_to() {
        for address in ["10.0.0.1:80", "[fe80::1]:80", "0.0.0.0:80", "[::]:80"] {
            let address: SocketAddr = address.parse().unwrap();
            let hello = Tunnel::Connect(address).hello();
            assert_eq!(Tunnel::from_hello(&hello), Err(HelloError::NoLoopback(address.ip())));
        }
        let mut hello = Tunnel::Names(Ipv4Addr::LOCALHOST).hello();
        hello[4] = 4;
        assert_eq!(Tunnel::from_hello(&hello), Err(HelloError::BadKind(4)));
        hello[0] = 0;
        assert_eq!(Tunnel::from_hello(&hello), Err(HelloError::BadMagic));
    }
}
