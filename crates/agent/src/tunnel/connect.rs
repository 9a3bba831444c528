//! A connection from the host to a server that listens on the guest's loopback.

use std::io;
use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Stream, TIMEOUT, answer};

pub(super) async fn serve(mut stream: impl Stream, address: SocketAddr) -> io::Result<()> {
    let connected = match timeout(TIMEOUT, TcpStream::connect(address)).await {
        Ok(connected) => connected,
        Err(_) => Err(rustix::io::Errno::TIMEDOUT.into()),
    };
    let mut server = answer(&mut stream, connected).await?;
    copy_bidirectional(&mut stream, &mut server).await.map(drop)
}

#[cfg(test)]
mod tests {
    use nacre_protocol::tunnel::{OPEN, Tunnel};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::net::TcpListener;
    use tokio::task::JoinHandle;

    use super::*;

    /// A tunnel to this address, and the agent's first answer.
    async fn open(address: SocketAddr) -> (DuplexStream, u8, JoinHandle<io::Result<()>>) {
        let (mut host, agent) = duplex(1 << 16);
        let served = tokio::spawn(super::super::serve(agent, super::super::no_sockets()));
        host.write_all(&Tunnel::Connect(address).hello()).await.unwrap();
        let answer = host.read_u8().await.unwrap();
        (host, answer, served)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_end_of_one_leaves_the_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut host, answer, served) = open(listener.local_addr().unwrap()).await;
        assert_eq!(answer, OPEN);
        let (mut server, _) = listener.accept().await.unwrap();
        host.write_all(b"request").await.unwrap();
        host.shutdown().await.unwrap();
        let mut request = String::new();
        server.read_to_string(&mut request).await.unwrap();
        assert_eq!(request, "request");
        server.write_all(b"reply").await.unwrap();
        drop(server);
        let mut reply = String::new();
        host.read_to_string(&mut reply).await.unwrap();
        assert_eq!(reply, "reply");
        served.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nobody_listening_is_told_with_its_errno() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (_, answer, served) = open(free).await;
        assert_eq!(i32::from(answer), rustix::io::Errno::CONNREFUSED.raw_os_error());
        assert!(served.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn hello_that_is_none_ends_the_tunnel() {
        let (mut host, agent) = duplex(64);
        let served = tokio::spawn(super::super::serve(agent, super::super::no_sockets()));
        host.write_all(&[0; 24]).await.unwrap();
        assert!(served.await.unwrap().is_err());
    }
}
