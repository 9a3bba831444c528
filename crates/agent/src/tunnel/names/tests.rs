use nacre_protocol::tunnel::{OPEN, Tunnel};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::io::{DuplexStream, duplex};

use super::*;

const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Runs in a network namespace of its own, on a runtime of one thread.
fn in_a_namespace<F: Future<Output = ()>>(act: impl FnOnce() -> F + Send + 'static) {
    std::thread::spawn(|| {
        #[expect(unsafe_code, reason = "a network namespace is unshared by this thread alone")]
        // SAFETY: CLONE_NEWNET changes the namespace of this thread only, and no descriptor.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("root");
        let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(status.expect("ip").success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(act());
    })
    .join()
    .unwrap();
}

async fn open() -> DuplexStream {
    let (mut host, agent) = duplex(1 << 20);
    tokio::spawn(super::super::serve(agent, super::super::no_sockets()));
    host.write_all(&Tunnel::Names(SERVER).hello()).await.unwrap();
    assert_eq!(host.read_u8().await.unwrap(), OPEN);
    host
}

/// The next query.
async fn query(host: &mut DuplexStream) -> (Header, Vec<u8>) {
    let mut header = [0; HEADER_LEN];
    host.read_exact(&mut header).await.unwrap();
    let header = Header::from_bytes(header).unwrap();
    let mut message = vec![0; usize::from(header.length)];
    host.read_exact(&mut message).await.unwrap();
    (header, message)
}

/// Answers it with itself and an exclamation mark.
async fn answer(host: &mut DuplexStream, (header, mut message): (Header, Vec<u8>)) {
    message.push(b'!');
    let header = Header { length: header.length + 1, ..header };
    host.write_all(&[&header.to_bytes()[..], &message].concat()).await.unwrap();
}

async fn reply(host: &mut DuplexStream) -> Transport {
    let query = query(host).await;
    let transport = query.0.transport;
    answer(host, query).await;
    transport
}

#[test]
fn datagrams_come_back_from_port_53_beside_a_server_that_has_bound_it() {
    in_a_namespace(|| async {
        let theirs = UdpSocket::bind("0.0.0.0:53").await.unwrap();
        let mut host = open().await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        // Connected, so that nothing from elsewhere is received.
        client.connect("127.0.0.11:53").await.unwrap();
        client.send(b"who").await.unwrap();
        assert_eq!(reply(&mut host).await, Transport::Udp);
        let mut bytes = [0; 16];
        let length = client.recv(&mut bytes).await.unwrap();
        assert_eq!(&bytes[..length], b"who!");

        let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        other.send_to(b"theirs", "127.0.0.1:53").await.unwrap();
        assert_eq!(theirs.recv(&mut bytes).await.unwrap(), 6);
    });
}

#[test]
fn connection_asks_several_times() {
    in_a_namespace(|| async {
        let mut host = open().await;
        let mut client = TcpStream::connect("127.0.0.11:53").await.unwrap();
        for query in [&b"one"[..], b"another"] {
            client.write_u16(query.len() as u16).await.unwrap();
            client.write_all(query).await.unwrap();
            assert_eq!(reply(&mut host).await, Transport::Tcp);
            let mut answer = vec![0; usize::from(client.read_u16().await.unwrap())];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, [query, b"!"].concat());
        }
    });
}

#[test]
fn oldest_query_makes_room_and_answers_that_nobody_waits_for_are_dropped() {
    in_a_namespace(|| async {
        let mut host = open().await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect("127.0.0.11:53").await.unwrap();
        for number in 0..=MAX_QUERIES as u8 {
            client.send(&[number]).await.unwrap();
        }
        // All of them wait before the first is answered.
        let mut queries = Vec::new();
        for _ in 0..=MAX_QUERIES {
            queries.push(query(&mut host).await);
        }
        for query in queries {
            answer(&mut host, query).await;
        }
        let stray = Header { tag: 7777, transport: Transport::Udp, length: 0 };
        host.write_all(&stray.to_bytes()).await.unwrap();
        let mut bytes = [0; 16];
        client.recv(&mut bytes).await.unwrap();
        assert_ne!(bytes[0], 0, "the first was given up");
    });
}
