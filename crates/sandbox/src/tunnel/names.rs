//! Name queries of the guest, for the server that Docker has in the namespace.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::tunnel::{HEADER_LEN, Header, MAX_QUERIES, QUERY_TIMEOUT_S, Transport, Tunnel};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::debug;

use super::open;
use crate::network::Namespace;
use crate::stdio::Dialer;

/// Where Docker's name server listens, in each namespace with a network that somebody has made.
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

const PORT: u16 = 53;

/// Longest DNS message (RFC 1035, section 4.2.2).
const MAX_MESSAGE: usize = u16::MAX as usize;

const TIMEOUT: Duration = Duration::from_secs(QUERY_TIMEOUT_S);

pub(super) async fn serve(namespace: Namespace, dialer: Dialer) -> io::Result<()> {
    let stream = open(&dialer, Tunnel::Names(SERVER)).await?;
    relay(stream, Arc::new(namespace), (SERVER, PORT).into()).await
}

/// Asks `server` in the namespace whatever the guest asks, until the tunnel ends.
pub(super) async fn relay(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    namespace: Arc<Namespace>,
    server: SocketAddr,
) -> io::Result<()> {
    let (mut reader, mut writer) = split(stream);
    let (sender, mut answers) = mpsc::channel::<Vec<u8>>(1);
    let ask = async move {
        let places = Arc::new(Semaphore::new(MAX_QUERIES));
        loop {
            let mut header = [0; HEADER_LEN];
            if reader.read_exact(&mut header).await.is_err() {
                return Ok(());
            }
            let header = Header::from_bytes(header).ok_or(io::ErrorKind::InvalidData)?;
            let mut query = vec![0; usize::from(header.length)];
            reader.read_exact(&mut query).await?;
            // A guest that asks too much at once waits.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
            let (namespace, sender) = (Arc::clone(&namespace), sender.clone());
            tokio::spawn(async move {
                match timeout(TIMEOUT, exchange(&namespace, server, header.transport, &query)).await {
                    // Where it fails, whoever has asked will ask again or give up, as with any server.
                    Ok(Err(error)) => debug!(%error, "name query not answered"),
                    Err(_) => debug!("name query not answered in time"),
                    Ok(Ok(answer)) => {
                        let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
                        let header = Header { length, ..header };
                        let _ = sender.send([&header.to_bytes()[..], &answer].concat()).await;
                    }
                }
                drop(place);
            });
        }
    };
    let tell = async {
        while let Some(answer) = answers.recv().await {
            writer.write_all(&answer).await?;
        }
        Ok(())
    };
    tokio::select! {
        result = ask => result,
        result = tell => result,
    }
}

/// One query, on a socket of its own: answers to others do not get in between, and the kernel draws the port.
async fn exchange(
    namespace: &Namespace,
    server: SocketAddr,
    transport: Transport,
    query: &[u8],
) -> io::Result<Vec<u8>> {
    match transport {
        Transport::Udp => {
            let socket = namespace.inside(|| {
                let socket = StdUdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect(server)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            let socket = UdpSocket::from_std(socket.map_err(io::Error::other)?)?;
            socket.send(query).await?;
            let mut answer = vec![0; MAX_MESSAGE];
            let length = socket.recv(&mut answer).await?;
            answer.truncate(length);
            Ok(answer)
        }
        Transport::Tcp => {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = namespace
                .inside(|| Ok(socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?))
                .map_err(io::Error::other)?;
            let mut socket = TcpSocket::from_std_stream(socket.into()).connect(server).await?;
            let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            socket.write_all(&[&length.to_be_bytes()[..], query].concat()).await?;
            let mut answer = vec![0; usize::from(socket.read_u16().await?)];
            socket.read_exact(&mut answer).await?;
            Ok(answer)
        }
    }
}
