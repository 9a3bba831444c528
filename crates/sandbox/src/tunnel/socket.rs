//! Clients of a socket in the guest, for the socket of the host that it stands in for.
//!
//! One tunnel waits for the next client; when there is one, another tunnel waits. Only the host's socket that the container
//! was given is connected to, by the descriptor that was opened when it was.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::ports::TUNNEL_PORT;
use nacre_protocol::tunnel::{OPEN, Tunnel};
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::debug;

use crate::stdio::Dialer;

/// Clients of one socket at once; the next ones wait in the guest.
const MAX_CLIENTS: usize = 32;

/// Before another tunnel is tried where one failed.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn serve(socket: OwnedFd, number: u32, dialer: Dialer) -> io::Result<()> {
    let socket = Arc::new(socket);
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    // They end with the container.
    let mut clients = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        while clients.try_join_next().is_some() {}
        match next_client(&dialer, number).await {
            Ok(client) => {
                let socket = Arc::clone(&socket);
                clients.spawn(async move {
                    if let Err(error) = lead(client, &socket).await {
                        debug!(%error, "client of a socket of the host ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                debug!(%error, "no tunnel for a socket of the host");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Waits for a client, however long that takes.
async fn next_client(dialer: &Dialer, number: u32) -> io::Result<UnixStream> {
    let mut stream = dialer.connect(TUNNEL_PORT, &Tunnel::Client(number).hello()).await?;
    match stream.read_u8().await? {
        OPEN => Ok(stream),
        errno => Err(io::Error::from_raw_os_error(i32::from(errno))),
    }
}

async fn lead(mut client: UnixStream, socket: &OwnedFd) -> io::Result<()> {
    // The file that was given, whatever has its name by now.
    let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
    let mut server = UnixStream::connect(path).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nacre_protocol::tunnel::HELLO_LEN;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn each_client_of_the_guest_is_a_connection_to_the_hosts_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service");
        let service = UnixListener::bind(&path).unwrap();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let socket: OwnedFd = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        // Another file of that name is not meant.
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        let vsock = UnixListener::bind(dir.path().join("vsock")).unwrap();
        let dialer = Dialer::new(dir.path().join("vsock"));
        let served = tokio::spawn(serve(socket, 7, dialer));
        for text in ["one", "two"] {
            let (tunnel, _) = vsock.accept().await.unwrap();
            let mut tunnel = BufReader::new(tunnel);
            let mut line = String::new();
            tunnel.read_line(&mut line).await.unwrap();
            let mut hello = [0; HELLO_LEN];
            tunnel.read_exact(&mut hello).await.unwrap();
            assert_eq!(
                (line.as_str(), Tunnel::from_hello(&hello)),
                ("CONNECT 1026\n", Ok(Tunnel::Client(7)))
            );
            tunnel.write_all(b"OK 1073741824\n\0").await.unwrap();
            tunnel.write_all(text.as_bytes()).await.unwrap();
            tunnel.shutdown().await.unwrap();
            let (mut connection, _) = service.accept().await.unwrap();
            let mut request = String::new();
            connection.read_to_string(&mut request).await.unwrap();
            assert_eq!(request, text);
            connection.write_all(b"reply").await.unwrap();
            drop(connection);
            let mut reply = String::new();
            tunnel.read_to_string(&mut reply).await.unwrap();
            assert_eq!(reply, "reply");
        }
        served.abort();
    }
}
