use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;

/// Runs in a network namespace of its own, with its loopback up; false where this machine does not let one.
fn in_a_namespace(act: impl FnOnce(File) + Send + 'static) {
    thread::spawn(|| {
        #[expect(unsafe_code, reason = "a network namespace is unshared by this thread alone")]
        // SAFETY: CLONE_NEWNET changes the namespace of this thread only, and no descriptor.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("root");
        let status = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(status.expect("ip").success());
        act(File::open("/proc/thread-self/ns/net").unwrap());
    })
    .join()
    .unwrap();
}

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[test]
fn every_port_of_an_address_reaches_one_listener_until_the_steering_ends() {
    in_a_namespace(|namespace| {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let all = |address| Destination { transport: Transport::Tcp, address, port: None };
        let wanted = [LOCALHOST, IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|ip| (all(ip), listener.as_fd()));
        let steering = steer(&namespace, &wanted).unwrap();
        for address in ["127.0.0.1:80", "127.0.0.1:65535", "[::1]:22"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut client = TcpStream::connect(address).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            assert_eq!(server.local_addr().unwrap().port(), address.port());
            server.write_all(b"here").unwrap();
            let mut bytes = [0; 4];
            client.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"here");
        }
        assert!(TcpStream::connect("127.0.0.2:80").is_err(), "another address");
        drop(steering);
        assert!(TcpStream::connect("127.0.0.1:80").is_err(), "the steering is over");
    });
}

#[test]
fn one_port_is_taken_from_whoever_has_bound_it_and_no_other() {
    in_a_namespace(|namespace| {
        let theirs = UdpSocket::bind("0.0.0.0:53").unwrap();
        let ours = UdpSocket::bind("127.0.0.11:0").unwrap();
        let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
        let destination = Destination { transport: Transport::Udp, address, port: Some(53) };
        let _steering = steer(&namespace, &[(destination, ours.as_fd())]).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut bytes = [0; 8];
        client.send_to(b"ours", "127.0.0.11:53").unwrap();
        assert_eq!(ours.recv_from(&mut bytes).unwrap(), (4, client.local_addr().unwrap()));
        client.send_to(b"theirs", "127.0.0.1:53").unwrap();
        assert_eq!(theirs.recv_from(&mut bytes).unwrap(), (6, client.local_addr().unwrap()));
    });
}

#[test]
fn ninth_destination_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = Destination { transport: Transport::Tcp, address: LOCALHOST, port: None };
    let namespace = File::open("/proc/thread-self/ns/net").unwrap();
    assert_eq!(steer(namespace, &[(one, listener.as_fd()); 9]).unwrap_err(), Errno::TOOBIG);
}
