//! Network configuration in a network namespace of the test's thread, read back with iproute2. Needs root and `ip`.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::process::Command;

use nacre_agent::machine::network::{Birthplace, Links, NetworkConfig, NetworkError, configure, loopback_up};
use nacre_protocol::rpc::agent::{ConfigureNetworkRequest, Link, Neighbour, Route};
use nix::sched::{CloneFlags, unshare};

/// Gives the calling thread an empty network namespace with two links, as a guest has them at boot.
fn two_links() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link add name veth0 address 02:00:00:00:00:01 type veth peer name veth1 address 02:00:00:00:00:02");
}

fn configured(config: &NetworkConfig) -> Result<(), NetworkError> {
    configure(Links::open().unwrap(), None, config)
}

fn ip(arguments: &str) -> String {
    let output =
        Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn link(mac: &str, name: &str, addresses: &[&str]) -> Link {
    Link {
        mac: mac.to_owned(),
        name: name.to_owned(),
        mtu: 1400,
        addresses: addresses.iter().map(|&address| address.to_owned()).collect(),
        ..Default::default()
    }
}

fn route(destination: &str, gateway: &str, link: &str, scope: u32) -> Route {
    Route {
        destination: destination.to_owned(),
        gateway: gateway.to_owned(),
        link: link.to_owned(),
        scope,
        ..Default::default()
    }
}

fn pod() -> ConfigureNetworkRequest {
    ConfigureNetworkRequest {
        links: vec![
            link("02:00:00:00:00:01", "eth0", &["10.88.0.5/16", "fd00::5/64"]),
            link("02:00:00:00:00:02", "eth1", &["192.0.2.1/32"]),
        ],
        // As some networks have it: the gateway is reached by a link route of its own.
        routes: vec![
            route("169.254.1.1/32", "", "eth0", 253),
            route("0.0.0.0/0", "169.254.1.1", "eth0", 0),
            route("default", "fd00::1", "eth0", 0),
        ],
        neighbours: vec![Neighbour {
            address: "169.254.1.1".to_owned(),
            mac: "ee:ee:ee:ee:ee:ee".to_owned(),
            link: "eth0".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[test]
fn loopback_comes_up_with_its_addresses() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    loopback_up().unwrap();
    let shown = ip("address show dev lo");
    assert!(shown.contains("LOOPBACK,UP") && shown.contains("inet 127.0.0.1/8"), "{shown}");
}

#[test]
fn links_are_found_by_mac_renamed_and_addressed() {
    two_links();
    configured(&NetworkConfig::parse(&pod()).unwrap()).unwrap();
    let shown = ip("address show dev eth0");
    for part in
        ["mtu 1400", "UP", "02:00:00:00:00:01", "inet 10.88.0.5/16 brd 10.88.255.255", "inet6 fd00::5/64"]
    {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
    // Usable at once: no duplicate address detection runs.
    assert!(!shown.contains("fd00::5/64 scope global tentative"), "{shown}");
    assert!(ip("address show dev eth1").contains("inet 192.0.2.1/32"));
}

#[test]
fn links_come_home_from_where_the_kernel_made_them() {
    two_links();
    // Names that are taken at home are no obstacle.
    ip("link set veth0 name eth0");
    let birthplace = Links::open().unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let home = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    let mut birthplace = birthplace.leading_to(home.into());
    let mut request = pod();
    let later = request.links.split_off(1);
    let configured = |birthplace: &mut Birthplace, request: &ConfigureNetworkRequest| {
        configure(Links::open().unwrap(), Some(birthplace), &NetworkConfig::parse(request).unwrap()).unwrap();
        ip("-brief address show")
    };
    let shown = configured(&mut birthplace, &request);
    assert!(shown.contains("eth0") && shown.contains("10.88.0.5/16") && !shown.contains("eth1"), "{shown}");
    request.links.extend(later);
    let shown = configured(&mut birthplace, &request);
    assert!(shown.contains("10.88.0.5/16") && shown.contains("192.0.2.1/32"), "{shown}");
}

#[test]
fn routes_and_neighbours_are_set_in_order() {
    two_links();
    configured(&NetworkConfig::parse(&pod()).unwrap()).unwrap();
    let routes = ip("route show");
    assert!(routes.contains("default via 169.254.1.1 dev eth0"), "{routes}");
    assert!(routes.contains("169.254.1.1 dev eth0") && routes.contains("scope link"), "{routes}");
    assert!(ip("-6 route show").contains("default via fd00::1 dev eth0"));
    assert!(ip("neighbour show").contains("169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT"));
}

#[test]
fn configuring_again_changes_nothing() {
    two_links();
    let config = NetworkConfig::parse(&pod()).unwrap();
    configured(&config).unwrap();
    // Whether the kernel has noticed the carrier yet is not of interest.
    let routes = || ip("route show").replace(" linkdown", "");
    let before = routes();
    configured(&config).unwrap();
    assert_eq!(routes(), before);
}

#[test]
fn link_that_is_not_there_is_named() {
    two_links();
    let mut request = pod();
    request.links[0].mac = "02:00:00:00:00:99".to_owned();
    let error = configured(&NetworkConfig::parse(&request).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "no network link has the address 02:00:00:00:00:99");
}

#[test]
fn route_that_the_kernel_refuses_is_named() {
    two_links();
    let mut request = pod();
    request.routes = vec![route("0.0.0.0/0", "203.0.113.1", "eth0", 0)];
    let error = configured(&NetworkConfig::parse(&request).unwrap()).unwrap_err();
    assert!(matches!(error, NetworkError::Set { .. }));
    assert_eq!(error.to_string(), "cannot set route to 0.0.0.0/0 through 203.0.113.1 on eth0");
}
