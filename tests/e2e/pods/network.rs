//! Addresses, ports and names of a pod, from within and from without.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nacre_tests::cri::{Pod, Wish, wait_for};

use nacre_protocol::cri::PortMapping;

use super::NODE;

/// For an answer on an emulated machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers over TCP and UDP, of both families, with what was sent and `PORT`, until it is ended.
const ECHO: &str = "
import os, socket, threading
port = int(os.environ['PORT'])
tcp = socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
udp.bind(('::', port))
def datagrams():
    while True:
        data, peer = udp.recvfrom(2000)
        udp.sendto(b'udp ' + data, peer)
threading.Thread(target=datagrams, daemon=True).start()
print('listens', flush=True)
while True:
    peer, _ = tcp.accept()
    peer.sendall(b'tcp ' + peer.recv(2000))
    peer.close()
";

/// Asks `ADDRESS PORT` over both, from a container.
const ASK: &str = "
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
with socket.create_connection((address, port), 60) as tcp:
    tcp.sendall(b'from a pod')
    print(tcp.recv(2000).decode())
udp = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(5)
for _ in range(12):
    udp.sendto(b'from a pod', (address, port))
    try:
        print(udp.recv(2000).decode())
        break
    except TimeoutError:
        pass
";

fn start_echo(pod: &Pod<'_>, port: u16) -> String {
    let wish = Wish::sh("").command(&["python3", "-c", ECHO]).env("PORT", &port.to_string());
    let id = pod.start("echo", wish);
    wait_for("the server", || {
        let log = pod.log("echo", 0);
        assert!(!log.contains("Error"), "{log}");
        log.contains("listens")
    });
    id
}

fn ask_tcp(address: &str, port: u16) -> String {
    let address: IpAddr = address.parse().expect("an address");
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    stream.write_all(b"from the host").expect("a peer");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn ask_udp(address: &str, port: u16) -> String {
    let address: IpAddr = address.parse().expect("an address");
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    let mut answer = [0; 2000];
    for _ in 0..12 {
        socket.send_to(b"from the host", (address, port)).expect("a route");
        if let Ok(length) = socket.recv(&mut answer) {
            return String::from_utf8_lossy(&answer[..length]).into_owned();
        }
    }
    panic!("no answer over UDP from {address}");
}

/// All addresses of a pod: of IPv4, then of IPv6.
fn addresses(pod: &Pod<'_>) -> [String; 2] {
    let network = pod.describe(false).status.network.clone().unwrap_or_default();
    [network.ip.clone(), network.additional_ips[0].ip.clone()]
}

#[test]
fn pod_is_reached_from_the_host_by_both_families_and_both_transports() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = start_echo(&pod, 9090);
    let seen = pod.sh(&id, "ip addr show eth0").ok().stdout;
    for address in addresses(&pod) {
        assert!(seen.contains(&format!(" {address}/")), "{address} in {seen}");
        assert_eq!(ask_tcp(&address, 9090), "tcp from the host");
        assert_eq!(ask_udp(&address, 9090), "udp from the host");
    }
    pod.remove(&id);
}

#[test]
fn host_is_reached_from_a_pod_by_its_gateway() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("client", Wish::idle());
    let gateway = pod.sh(&id, "ip route | awk '/^default/ {print $3}'").ok().text().to_owned();
    let listener = TcpListener::bind((gateway.as_str(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut peer, from) = listener.accept().unwrap();
        // All of the request: what is unread at the close would make a reset of it.
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            peer.read_exact(&mut byte).unwrap();
            request.extend(byte);
        }
        peer.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom the host").unwrap();
        from.ip().to_string()
    });
    let got = pod.sh(&id, &format!("wget -T 60 -qO- http://{gateway}:{port}/")).ok();
    assert_eq!(got.text(), "from the host");
    assert_eq!(server.join().unwrap(), pod.address(), "the pod's own address is what the host sees");
    pod.remove(&id);
}

#[test]
fn two_pods_reach_each_other_by_both_families_and_both_transports() {
    let stay = NODE.share();
    let (shared, other) = (stay.pod(), stay.run("neighbour"));
    let server = start_echo(&other, 9090);
    let client = shared.start("client", Wish::idle());
    for address in addresses(&other) {
        let asked = shared.exec(&client, &["python3", "-c", ASK, &address, "9090"]).ok();
        assert_eq!(asked.stdout, "tcp from a pod\nudp from a pod\n", "{address}");
    }
    // Their loopbacks are two.
    assert_ne!(shared.exec(&client, &["python3", "-c", ASK, "127.0.0.1", "9090"]).status, 0);
    other.remove(&server);
    shared.remove(&client);
    other.end();
}

#[test]
fn containers_of_a_pod_reach_each_other_by_the_loopback() {
    let stay = NODE.share();
    let pod = stay.pod();
    let server = start_echo(&pod, 9191);
    let client = pod.start("client", Wish::idle());
    for address in ["127.0.0.1", "::1"] {
        let asked = pod.exec(&client, &["python3", "-c", ASK, address, "9191"]).ok();
        assert_eq!(asked.stdout, "tcp from a pod\nudp from a pod\n", "{address}");
    }
    pod.remove(&server);
    pod.remove(&client);
}

#[test]
fn port_of_the_host_leads_to_the_pod_while_it_is_there() {
    let stay = NODE.enter();
    let mut config = stay.config("host-port");
    config.port_mappings = [0, 1]
        .map(|protocol| PortMapping {
            protocol,
            container_port: 9090,
            host_port: 19090,
            ..Default::default()
        })
        .to_vec();
    let pod = stay.run_config(config);
    let id = start_echo(&pod, 9090);
    let gateway = pod.sh(&id, "ip route | awk '/^default/ {print $3}'").ok().text().to_owned();
    assert_eq!(ask_tcp(&gateway, 19090), "tcp from the host");
    assert_eq!(ask_udp(&gateway, 19090), "udp from the host");
    pod.end();
    TcpStream::connect((gateway.as_str(), 19090)).expect_err("nobody is there any more");
}

#[test]
fn name_servers_are_those_of_the_pods_dns_configuration() {
    let stay = NODE.enter();
    let mut config = stay.config("names");
    let dns = config.dns_config.mut_or_insert_default();
    dns.servers = vec!["10.96.0.10".into(), "fd00::a".into()];
    dns.searches = vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()];
    dns.options = vec!["ndots:5".into()];
    let pod = stay.run_config(config);
    // A kubelet writes the names of a pod itself.
    let hosts = stay.file("hosts", "127.0.0.1 localhost\n10.1.2.3 db.internal db\n");
    let app = pod.start("app", Wish::idle().mount(&hosts, "/etc/hosts"));
    let seen = pod.sh(&app, "cat /etc/resolv.conf").ok().stdout;
    let lines: Vec<&str> = seen.lines().collect();
    let all = [
        "search default.svc.cluster.local svc.cluster.local",
        "nameserver 10.96.0.10",
        "nameserver fd00::a",
        "options ndots:5",
    ];
    assert_eq!(lines, all);
    let resolve =
        "import socket; print(socket.gethostbyname('db.internal'), socket.gethostbyname('localhost'))";
    assert_eq!(pod.exec(&app, &["python3", "-c", resolve]).ok().text(), "10.1.2.3 127.0.0.1");
    pod.end();
}
