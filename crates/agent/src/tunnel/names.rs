//! The name server that Docker has for a container's user-defined networks: it listens on 127.0.0.11 in the namespace on the
//! host. Here, queries to that address are taken and go through the tunnel, and answers come back from where they were sent to.
//!
//! Docker translates the port in the namespace, so a container may bind port 53 of every address for itself. So it may here: our
//! sockets have ports that are free, and are steered to. A datagram from one of them would come from the wrong port, so
//! answers leave through a raw socket.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nacre_bpf::{Destination, Steering, steer};
use nacre_protocol::tunnel::{HEADER_LEN, Header, MAX_QUERIES, QUERY_TIMEOUT_S, Transport};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::{Stream, answer};

/// Where resolvers send their queries (RFC 1035, section 4.2).
const PORT: u16 = 53;

/// Longest DNS message (RFC 1035, section 4.2.2).
const MAX_MESSAGE: usize = u16::MAX as usize;

/// Connections of containers at once.
const MAX_CONNECTIONS: usize = 16;

/// Bytes before the payload of a datagram: IPv4 (RFC 791, section 3.1) and UDP (RFC 768).
const HEADERS: usize = 20 + 8;

const QUERY_TIMEOUT: Duration = Duration::from_secs(QUERY_TIMEOUT_S);

/// Who waits for an answer.
#[derive(Debug)]
enum Asker {
    Datagram(SocketAddrV4),
    Connection(oneshot::Sender<Vec<u8>>),
}

/// A query from a connection.
type Asked = (Vec<u8>, oneshot::Sender<Vec<u8>>);

/// Sockets that queries come to, and answers leave by.
struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
    raw: OwnedFd,
    _steering: Steering,
}

pub(super) async fn serve(mut stream: impl Stream, address: Ipv4Addr) -> io::Result<()> {
    let opened = open(address).await;
    let sockets = answer(&mut stream, opened).await?;
    let (reader, writer) = split(stream);
    let mut server = Server { address, sockets, writer, next: 0, waiting: BTreeMap::new() };
    // Read by a task of its own: reading a message cannot be given up halfway.
    let (sender, answers) = mpsc::channel(1);
    let served = server.serve(answers);
    tokio::select! {
        result = read_answers(reader, sender) => result,
        result = served => result,
    }
}

async fn open(address: Ipv4Addr) -> io::Result<Sockets> {
    let udp = UdpSocket::bind((address, 0)).await?;
    let tcp = TcpListener::bind((address, 0)).await?;
    // It gets nothing: what is sent to a raw protocol of this number is for nobody.
    let raw = socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?;
    let namespace = File::open("/proc/thread-self/ns/net")?;
    let to = |transport| Destination { transport, address: IpAddr::V4(address), port: Some(PORT) };
    let wanted = [(to(nacre_bpf::Transport::Udp), udp.as_fd()), (to(nacre_bpf::Transport::Tcp), tcp.as_fd())];
    let steering = steer(namespace, &wanted)?;
    Ok(Sockets { udp, tcp, raw, _steering: steering })
}

struct Server<S> {
    address: Ipv4Addr,
    sockets: Sockets,
    writer: WriteHalf<S>,
    next: u32,
    /// By tag, so the first is the oldest.
    waiting: BTreeMap<u32, Asker>,
}

impl<S: Stream> Server<S> {
    async fn serve(&mut self, mut answers: mpsc::Receiver<(Header, Vec<u8>)>) -> io::Result<()> {
        let (sender, mut asked) = mpsc::channel::<Asked>(1);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            tokio::select! {
                received = self.sockets.udp.recv_from(&mut buffer) => {
                    // What ICMP has told of an earlier answer is not of interest.
                    let Ok((length, SocketAddr::V4(from))) = received else { continue };
                    self.ask(Transport::Udp, buffer.get(..length).unwrap_or_default(), Asker::Datagram(from)).await?;
                }
                accepted = self.sockets.tcp.accept() => {
                    if let (Ok((connection, _)), Ok(place)) = (accepted, Arc::clone(&places).try_acquire_owned()) {
                        let sender = sender.clone();
                        tokio::spawn(async move {
                            let _place = place;
                            let _ = serve_connection(connection, sender).await;
                        });
                    }
                }
                Some((query, asker)) = asked.recv() => {
                    self.ask(Transport::Tcp, &query, Asker::Connection(asker)).await?;
                }
                answer = answers.recv() => match answer {
                    Some((header, message)) => self.tell(header, message),
                    None => return Ok(()),
                },
            }
        }
    }

    async fn ask(&mut self, transport: Transport, query: &[u8], asker: Asker) -> io::Result<()> {
        let Ok(length) = u16::try_from(query.len()) else { return Ok(()) };
        self.next = self.next.wrapping_add(1);
        if self.waiting.len() >= MAX_QUERIES {
            self.waiting.pop_first();
        }
        self.waiting.insert(self.next, asker);
        let header = Header { tag: self.next, transport, length };
        let message = [&header.to_bytes(), query].concat();
        self.writer.write_all(&message).await
    }

    fn tell(&mut self, header: Header, message: Vec<u8>) {
        match self.waiting.remove(&header.tag) {
            Some(Asker::Datagram(to)) => {
                if let Err(error) = self.send(to, &message) {
                    tracing::debug!(%error, "answer to a name query not sent");
                }
            }
            // A connection that is gone needs none.
            Some(Asker::Connection(asker)) => drop(asker.send(message)),
            // Given up.
            None => {}
        }
    }

    /// Sends a datagram from [`PORT`] of the address. The kernel fills in what is left zero, and IPv4 does without UDP's
    /// checksum.
    fn send(&self, to: SocketAddrV4, message: &[u8]) -> io::Result<()> {
        let packet = datagram(SocketAddrV4::new(self.address, PORT), to, message)?;
        sendto(&self.sockets.raw, &packet, SendFlags::DONTWAIT, &to)?;
        Ok(())
    }
}

fn datagram(from: SocketAddrV4, to: SocketAddrV4, message: &[u8]) -> io::Result<Vec<u8>> {
    let length =
        |length: usize| u16::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let total = length(HEADERS + message.len())?;
    let udp = length(8 + message.len())?;
    let mut packet = Vec::with_capacity(usize::from(total));
    // Version 4, five words of header; a time to live of 64; protocol 17.
    packet.extend([0x45, 0]);
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    for field in [from.port(), to.port(), udp, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(message);
    Ok(packet)
}

async fn read_answers<S: Stream>(
    mut reader: ReadHalf<S>,
    answers: mpsc::Sender<(Header, Vec<u8>)>,
) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER_LEN];
        reader.read_exact(&mut header).await?;
        let header = Header::from_bytes(header).ok_or(io::ErrorKind::InvalidData)?;
        let mut message = vec![0; usize::from(header.length)];
        reader.read_exact(&mut message).await?;
        if answers.send((header, message)).await.is_err() {
            return Ok(());
        }
    }
}

/// Queries of one connection, one after the other.
async fn serve_connection(mut connection: TcpStream, queries: mpsc::Sender<Asked>) -> io::Result<()> {
    loop {
        let query = timeout(QUERY_TIMEOUT, async {
            let mut query = vec![0; usize::from(connection.read_u16().await?)];
            connection.read_exact(&mut query).await?;
            Ok::<_, io::Error>(query)
        });
        let query = query.await??;
        let (asker, reply) = oneshot::channel();
        if queries.send((query, asker)).await.is_err() {
            return Ok(());
        }
        let Ok(Ok(reply)) = timeout(QUERY_TIMEOUT, reply).await else { return Ok(()) };
        let length = u16::try_from(reply.len()).unwrap_or(u16::MAX);
        connection.write_all(&[&length.to_be_bytes()[..], &reply].concat()).await?;
    }
}

#[cfg(test)]
mod tests;
