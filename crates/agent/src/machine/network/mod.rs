//! Network links of the guest: names, addresses, routes, neighbours.
//!
//! The host says what CNI (or `nacre`) has given the sandbox; here it is checked ([`config`]) and put into the
//! kernel through [`message`]s on a [`socket`]. Links are found by MAC address, since their names depend on the
//! order in which the kernel met them.

mod config;
mod message;
mod socket;

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

pub use config::{ConfigError, Mac, NetworkConfig};
use config::{Link, Neighbour, Route};
use socket::Netlink;
pub use socket::NetlinkError;

use message::{attributes, u32_at};

/// include/uapi/linux/rtnetlink.h, which libc does not have.
const RTNH_F_ONLINK: u32 = 4;
const RTAX_MTU: u16 = 2;

/// A configuration that could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No link has the MAC address.
    #[error("no network link has the address {0}")]
    NoLink(Mac),
    /// A route or neighbour names a link that the kernel does not have.
    #[error("no network link is called {0:?}")]
    NoName(String),
    /// The kernel refused a part of it.
    #[error("cannot set {what}")]
    Set {
        /// The part.
        what: String,
        /// Its answer.
        #[source]
        source: NetlinkError,
    },
}

/// A link that the kernel has.
struct Known {
    index: u32,
    mac: Option<Mac>,
    name: String,
}

/// The links of one network namespace.
#[derive(Debug)]
pub struct Links {
    netlink: Netlink,
}

/// Where the kernel puts new links, while containers are in another network namespace.
#[derive(Debug)]
pub struct Birthplace {
    links: Links,
    /// The containers'.
    home: OwnedFd,
}

/// Brings the loopback link of the calling thread's network namespace up.
///
/// # Errors
/// [`NetworkError::Set`].
pub fn loopback_up() -> Result<(), NetworkError> {
    // The loopback link is made with its network namespace and always has index 1.
    let up = link_body(1, libc::IFF_UP as u32);
    Netlink::open()
        .and_then(|mut netlink| netlink.change(libc::RTM_NEWLINK, 0, &up, &[]))
        .map_err(|source| NetworkError::Set { what: "loopback link up".to_owned(), source })
}

fn links_error(source: NetlinkError) -> NetworkError {
    NetworkError::Set { what: "network links".to_owned(), source }
}

impl Links {
    /// Those of the calling thread's network namespace, also once the thread has left it.
    ///
    /// # Errors
    /// [`NetworkError::Set`].
    pub fn open() -> Result<Self, NetworkError> {
        Ok(Self { netlink: Netlink::open().map_err(links_error)? })
    }

    /// Those, as the place where the links of `home` come from.
    pub fn leading_to(self, home: OwnedFd) -> Birthplace {
        Birthplace { links: self, home }
    }
}

impl Birthplace {
    /// Moves the links of a configuration to their home. One that is there already is left alone.
    fn send_home(&mut self, config: &NetworkConfig) -> Result<(), NetworkError> {
        let netlink = &mut self.links.netlink;
        let home = self.home.as_raw_fd().unsigned_abs().to_ne_bytes();
        for link in list_links(netlink).map_err(links_error)? {
            if link.mac.is_some_and(|mac| config.links.iter().any(|wanted| wanted.mac == mac)) {
                // Where the name is taken already, it gets a number that is free.
                let attributes = [(libc::IFLA_NET_NS_FD, home.as_slice()), (libc::IFLA_IFNAME, b"eth%d\0")];
                netlink.change(libc::RTM_NEWLINK, 0, &link_body(link.index, 0), &attributes).map_err(
                    |source| NetworkError::Set { what: format!("namespace of link {}", link.name), source },
                )?;
            }
        }
        Ok(())
    }
}

/// Puts a configuration in place. Repeating it changes nothing.
///
/// # Errors
/// [`NetworkError`]; what came before the part that failed stays.
pub fn configure(
    links: Links,
    birthplace: Option<&mut Birthplace>,
    config: &NetworkConfig,
) -> Result<(), NetworkError> {
    let Links { mut netlink } = links;
    if let Some(birthplace) = birthplace {
        birthplace.send_home(config)?;
    }
    let mut known = list_links(&mut netlink).map_err(links_error)?;
    for link in &config.links {
        configure_link(&mut netlink, &mut known, link)?;
    }
    for neighbour in &config.neighbours {
        let index = index_of(&known, &neighbour.link)?;
        add_neighbour(&mut netlink, index, neighbour).map_err(|source| NetworkError::Set {
            what: format!("neighbour {} on {}", neighbour.address, neighbour.link),
            source,
        })?;
    }
    for route in &config.routes {
        let index = index_of(&known, &route.link)?;
        add_route(&mut netlink, index, route)
            .map_err(|source| NetworkError::Set { what: route.to_string(), source })?;
    }
    Ok(())
}

fn index_of(known: &[Known], name: &str) -> Result<u32, NetworkError> {
    let link = known.iter().find(|known| known.name == name);
    link.map(|known| known.index).ok_or_else(|| NetworkError::NoName(name.to_owned()))
}

fn list_links(netlink: &mut Netlink) -> Result<Vec<Known>, NetlinkError> {
    let mut links = Vec::new();
    netlink.dump(libc::RTM_GETLINK, &link_body(0, 0), |_, payload| {
        let Some(index) = u32_at(payload, 4) else { return };
        let mut link = Known { index, mac: None, name: String::new() };
        for (kind, value) in attributes(payload, 16) {
            match kind {
                libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
                libc::IFLA_IFNAME => {
                    link.name =
                        String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
                }
                _ => {}
            }
        }
        links.push(link);
    })?;
    Ok(links)
}

fn configure_link(netlink: &mut Netlink, known: &mut [Known], link: &Link) -> Result<(), NetworkError> {
    let found = known.iter_mut().find(|known| known.mac == Some(link.mac));
    let found = found.ok_or(NetworkError::NoLink(link.mac))?;
    let set = |what: String| move |source| NetworkError::Set { what, source };
    if found.name != link.name {
        // Only a link that is down takes another name.
        let mut name = link.name.clone().into_bytes();
        name.push(0);
        let down = link_body(found.index, 0);
        netlink
            .change(libc::RTM_NEWLINK, 0, &down, &[(libc::IFLA_IFNAME, &name)])
            .map_err(set(format!("name of link {}", link.name)))?;
        found.name.clone_from(&link.name);
    }
    let mtu = link.mtu.map(u32::to_ne_bytes);
    let mtu = mtu.as_ref().map(|mtu| (libc::IFLA_MTU, mtu.as_slice()));
    netlink
        .change(libc::RTM_NEWLINK, 0, &link_body(found.index, libc::IFF_UP as u32), mtu.as_slice())
        .map_err(set(format!("link {} up", link.name)))?;
    for (address, prefix) in &link.addresses {
        add_address(netlink, found.index, *address, *prefix)
            .map_err(set(format!("address {address}/{prefix} on {}", link.name)))?;
    }
    Ok(())
}

/// `struct ifinfomsg` that changes IFF_UP alone.
fn link_body(index: u32, flags: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    body
}

fn add_address(netlink: &mut Netlink, index: u32, address: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
    // struct ifaddrmsg: family, prefix length, flags, scope, index. Duplicate address detection would keep an
    // IPv6 address from use for a second, and CNI has made sure of it.
    let mut body =
        [family(address), prefix, if address.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 }, 0, 0, 0, 0, 0];
    body[4..].copy_from_slice(&index.to_ne_bytes());
    let bytes = octets(address);
    let mut attributes = vec![(libc::IFA_LOCAL, bytes.as_slice()), (libc::IFA_ADDRESS, bytes.as_slice())];
    let broadcast = broadcast(address, prefix);
    if let Some(broadcast) = &broadcast {
        attributes.push((libc::IFA_BROADCAST, broadcast.as_slice()));
    }
    netlink.change(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &body, &attributes)
}

/// The broadcast address of an IPv4 network that has one.
fn broadcast(address: IpAddr, prefix: u8) -> Option<[u8; 4]> {
    match address {
        IpAddr::V4(address) if prefix < 31 => {
            let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
            Some((address.to_bits() | host_bits).to_be_bytes())
        }
        _ => None,
    }
}

fn add_route(netlink: &mut Netlink, index: u32, route: &Route) -> Result<(), NetlinkError> {
    // struct rtmsg: family, destination and source prefix, tos, table, protocol, scope, type, flags.
    let mut body = [0; 12];
    body[0] = family(route.destination);
    body[1] = route.prefix;
    body[4] = libc::RT_TABLE_MAIN;
    body[5] = libc::RTPROT_STATIC;
    body[6] = route.scope;
    body[7] = libc::RTN_UNICAST;
    if route.onlink {
        body[8..].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let destination = octets(route.destination);
    let gateway = route.gateway.map(octets);
    let source = route.source.map(octets);
    let index = index.to_ne_bytes();
    let mut attributes: Vec<(u16, &[u8])> = vec![(libc::RTA_OIF, &index)];
    if route.prefix > 0 {
        attributes.push((libc::RTA_DST, &destination));
    }
    attributes.extend(gateway.as_ref().map(|bytes| (libc::RTA_GATEWAY, bytes.as_slice())));
    attributes.extend(source.as_ref().map(|bytes| (libc::RTA_PREFSRC, bytes.as_slice())));
    let priority = route.priority.map(u32::to_ne_bytes);
    attributes.extend(priority.as_ref().map(|bytes| (libc::RTA_PRIORITY, bytes.as_slice())));
    let metrics = route.mtu.map(mtu_metric);
    attributes.extend(metrics.as_ref().map(|bytes| (libc::RTA_METRICS, bytes.as_slice())));
    netlink.change(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &body, &attributes)
}

/// The one nested attribute of RTA_METRICS: length, RTAX_MTU, the value.
fn mtu_metric(mtu: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&8_u16.to_ne_bytes());
    bytes[2..4].copy_from_slice(&RTAX_MTU.to_ne_bytes());
    bytes[4..].copy_from_slice(&mtu.to_ne_bytes());
    bytes
}

fn add_neighbour(netlink: &mut Netlink, index: u32, neighbour: &Neighbour) -> Result<(), NetlinkError> {
    // struct ndmsg: family, 3 bytes of padding, index, state, flags, type.
    let mut body = [0; 12];
    body[0] = family(neighbour.address);
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    let address = octets(neighbour.address);
    let attributes = [(libc::NDA_DST, address.as_slice()), (libc::NDA_LLADDR, neighbour.mac.0.as_slice())];
    netlink.change(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &body, &attributes)
}

fn family(address: IpAddr) -> u8 {
    // Both constants are below 256 for ever: they are part of the kernel's interface.
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtu_of_a_route_is_one_nested_attribute() {
        assert_eq!(mtu_metric(1450), [8, 0, 2, 0, 0xaa, 5, 0, 0]);
    }

    #[test]
    fn broadcast_follows_from_address_and_prefix() {
        let of = |text: &str, prefix| broadcast(text.parse().unwrap(), prefix);
        assert_eq!(of("10.88.0.5", 16), Some([10, 88, 255, 255]));
        assert_eq!(of("10.88.0.5", 0), Some([255, 255, 255, 255]));
        assert_eq!(of("10.88.0.5", 31), None);
        assert_eq!(of("fd00::5", 64), None);
    }
}
