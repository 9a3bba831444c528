use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream as StdTcpStream, UdpSocket as StdUdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use nacre_protocol::tunnel::{HEADER_LEN, HELLO_LEN, Header, Transport};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::io::{AsyncWriteExt, duplex};
use tokio::net::UnixListener;

use super::*;

/// A network namespace with its loopback up, as long as the sender lives.
fn namespace() -> (Namespace, Sender<()>) {
    let (ready, path) = channel();
    let (keep, end) = channel();
    std::thread::spawn(move || {
        #[expect(unsafe_code, reason = "a network namespace is unshared by this thread alone")]
        // SAFETY: CLONE_NEWNET changes the namespace of this thread only, and no descriptor.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("root");
        let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(status.expect("ip").success());
        let thread = rustix::thread::gettid().as_raw_nonzero();
        ready.send(PathBuf::from(format!("/proc/self/task/{thread}/ns/net"))).unwrap();
        let _ = end.recv();
    });
    let opened = Namespace::open(&path.recv().unwrap()).unwrap();
    (opened, keep)
}

/// Plays the VMM and the agent: takes one tunnel, answers with `status`, and sends back in capitals what it gets.
async fn agent(listener: UnixListener, status: u8) -> Tunnel {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut hello = [0; b"CONNECT 1026\n".len() + HELLO_LEN];
    stream.read_exact(&mut hello).await.unwrap();
    let hello = hello.strip_prefix(b"CONNECT 1026\n").unwrap();
    stream.write_all(&[b"OK 1\n", &[status][..]].concat()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    stream.write_all(&bytes.to_ascii_uppercase()).await.unwrap();
    Tunnel::from_hello(hello.try_into().unwrap()).unwrap()
}

/// Connects as soon as somebody listens; what comes back for a request.
fn request(namespace: &Namespace, to: SocketAddr) -> io::Result<String> {
    let mut client = loop {
        match namespace.inside(|| StdTcpStream::connect(to)) {
            Ok(client) => break client,
            Err(_) => std::thread::yield_now(),
        }
    };
    client.write_all(b"request")?;
    client.shutdown(std::net::Shutdown::Write)?;
    let mut reply = String::new();
    client.read_to_string(&mut reply)?;
    Ok(reply)
}

async fn lead(to: &str, status: u8) -> (io::Result<String>, Tunnel) {
    let (namespace, _keep) = namespace();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock");
    let played = tokio::spawn(agent(UnixListener::bind(&path).unwrap(), status));
    let _served = serve_loopback(namespace.try_clone().unwrap(), Dialer::new(path));
    let to: SocketAddr = to.parse().unwrap();
    let reply = tokio::task::spawn_blocking(move || request(&namespace, to)).await.unwrap();
    (reply, played.await.unwrap())
}

#[tokio::test]
async fn connection_to_any_port_of_the_loopback_reaches_that_of_the_guest() {
    for to in ["127.0.0.1:8080", "[::1]:65535"] {
        let (reply, tunnel) = lead(to, OPEN).await;
        assert_eq!(reply.unwrap(), "REQUEST");
        assert_eq!(tunnel, Tunnel::Connect(to.parse().unwrap()));
    }
}

#[tokio::test]
async fn connection_that_nobody_takes_in_the_guest_is_reset() {
    let (reply, _) = lead("127.0.0.1:8080", 111).await;
    assert_eq!(reply.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn name_queries_reach_the_server_in_the_namespace() {
    let (namespace, _keep) = namespace();
    let server = namespace.inside(|| StdUdpSocket::bind((Ipv4Addr::new(127, 0, 0, 11), 0))).unwrap();
    let address = server.local_addr().unwrap();
    let answered = tokio::task::spawn_blocking(move || {
        let mut bytes = [0; 64];
        let (length, from) = server.recv_from(&mut bytes).unwrap();
        bytes.reverse();
        server.send_to(&bytes[64 - length..], from).unwrap();
    });
    let (mut guest, host) = duplex(1 << 16);
    tokio::spawn(names::relay(host, Arc::new(namespace), address));
    // Nobody listens there; the other query is answered all the same.
    let lost = Header { tag: 1, transport: Transport::Tcp, length: 2 };
    guest.write_all(&[&lost.to_bytes()[..], b"no"].concat()).await.unwrap();
    let query = Header { tag: 2, transport: Transport::Udp, length: 3 };
    guest.write_all(&[&query.to_bytes()[..], b"abc"].concat()).await.unwrap();
    let mut answer = [0; HEADER_LEN + 3];
    guest.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [&query.to_bytes()[..], b"cba"].concat().as_slice());
    answered.await.unwrap();
}

#[tokio::test]
async fn h12_message_of_an_unknown_transport_ends_the_tunnel() {
    let (namespace, _keep) = namespace();
    let (mut guest, host) = duplex(64);
    let relayed = tokio::spawn(names::relay(host, Arc::new(namespace), "127.0.0.11:53".parse().unwrap()));
    guest.write_all(&[0, 0, 0, 1, 9, 0, 0, 0]).await.unwrap();
    assert_eq!(relayed.await.unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
}
