//! What is in a namespace, and what the guest gets of it.
//!
//! Links that are up and look like Ethernet are handed on. Of the rest: addresses but for those that the guest's kernel makes
//! by itself (link-local IPv6), routes of the main table but for those that come with an address, and neighbours that
//! somebody fixed.

use std::net::IpAddr;

use futures_util::{Stream, TryStreamExt, pin_mut};
use nacre_protocol::rpc::agent::{self, ConfigureNetworkRequest};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteType,
};
use rtnetlink::{Error, Handle, RouteMessageBuilder};

use super::{NetworkError, netlink};

/// Messages of the kernel about one namespace.
#[derive(Debug, Default)]
pub(super) struct Found {
    links: Vec<LinkMessage>,
    addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
    neighbours: Vec<NeighbourMessage>,
}

/// A link that a guest can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u16,
}

/// Every item of a stream, up to its first error.
pub(super) async fn all<T>(stream: impl Stream<Item = Result<T, Error>>) -> Result<Vec<T>, Error> {
    pin_mut!(stream);
    let mut items = Vec::new();
    while let Some(item) = stream.try_next().await? {
        items.push(item);
    }
    Ok(items)
}

impl Found {
    pub(super) async fn read(handle: &Handle) -> Result<Self, NetworkError> {
        let links = all(handle.link().get().execute()).await.map_err(netlink("list the links"))?;
        let addresses = all(handle.address().get().execute()).await.map_err(netlink("list the addresses"))?;
        let (v4, v6) = (
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        );
        let mut routes = Vec::new();
        for family in [v4, v6] {
            let listed = all(handle.route().get(family).execute()).await;
            routes.extend(listed.map_err(netlink("list the routes"))?);
        }
        let neighbours =
            all(handle.neighbours().get().execute()).await.map_err(netlink("list the neighbours"))?;
        Ok(Self { links, addresses, routes, neighbours })
    }

    /// Links for the guest, in the order in which they were made.
    pub(super) fn links(&self) -> Vec<Link> {
        let mut links: Vec<Link> = self.links.iter().filter_map(link).collect();
        links.sort_by_key(|link| link.index);
        links
    }

    /// The configuration of the guest's network.
    pub(super) fn request(&self, links: &[Link]) -> ConfigureNetworkRequest {
        let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        let mut routes: Vec<agent::Route> =
            self.routes.iter().filter_map(|message| route(message, name)).collect();
        // A gateway must be reachable before a route leads through it.
        routes.sort_by_key(|route| !route.gateway.is_empty());
        ConfigureNetworkRequest {
            links: links.iter().map(|link| self.guest_link(link)).collect(),
            routes,
            neighbours: self.neighbours.iter().filter_map(|message| neighbour(message, name)).collect(),
            ..Default::default()
        }
    }

    /// Whether each route has one hop, of its own family: one by several would be told as one without a gateway.
    pub(super) fn has_plain_routes(&self) -> bool {
        let plain = |attribute: &RouteAttribute| {
            !matches!(attribute, RouteAttribute::Via(_) | RouteAttribute::MultiPath(_))
        };
        let wanted = self.routes.iter().filter(|message| is_wanted(message));
        wanted.flat_map(|message| &message.attributes).all(plain)
    }

    fn guest_link(&self, link: &Link) -> agent::Link {
        let own = self.addresses.iter().filter(|message| message.header.index == link.index);
        agent::Link {
            mac: mac_text(&link.mac),
            name: link.name.clone(),
            mtu: u32::from(link.mtu),
            addresses: own.filter_map(address).collect(),
            ..Default::default()
        }
    }
}

fn link(message: &LinkMessage) -> Option<Link> {
    let header = &message.header;
    let up = header.flags.contains(LinkFlags::Up) && !header.flags.contains(LinkFlags::Loopback);
    if !up || header.link_layer_type != LinkLayerType::Ether {
        return None;
    }
    let (mut name, mut mac, mut mtu) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(bytes) => mtu = u16::try_from(*bytes).ok(),
            _ => {}
        }
    }
    Some(Link { index: header.index, name: name?, mac: mac?, mtu: mtu? })
}

/// In CIDR notation.
fn address(message: &AddressMessage) -> Option<String> {
    // Where both are there, IFA_ADDRESS is the other end of a point-to-point link (rtnetlink(7)).
    let of = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    let local = of(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        of(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => None,
        address => Some(format!("{address}/{}", message.header.prefix_len)),
    }
}

fn is_wanted(message: &RouteMessage) -> bool {
    let header = &message.header;
    header.kind == RouteType::Unicast
        && header.table == RouteHeader::RT_TABLE_MAIN
        && header.protocol != RouteProtocol::Kernel
}

fn route(message: &RouteMessage, name: impl Fn(u32) -> Option<String>) -> Option<agent::Route> {
    let header = &message.header;
    if !is_wanted(message) {
        return None;
    }
    let mut route = agent::Route {
        scope: u32::from(u8::from(header.scope)),
        onlink: header.flags.contains(RouteFlags::Onlink),
        ..Default::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                route.destination = format!("{}/{}", ip(to)?, header.destination_prefix_length);
            }
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway)?.to_string(),
            RouteAttribute::PrefSource(source) => route.source = ip(source)?.to_string(),
            RouteAttribute::Oif(index) => route.link = name(*index)?,
            RouteAttribute::Priority(priority) => route.priority = *priority,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(mtu_of).unwrap_or_default();
            }
            _ => {}
        }
    }
    if route.link.is_empty() {
        return None;
    }
    if route.destination.is_empty() {
        let v6 = header.address_family == rtnetlink::packet_route::AddressFamily::Inet6;
        route.destination = if v6 { "::/0" } else { "0.0.0.0/0" }.to_owned();
    }
    Some(route)
}

fn mtu_of(metric: &RouteMetric) -> Option<u32> {
    if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn neighbour(message: &NeighbourMessage, name: impl Fn(u32) -> Option<String>) -> Option<agent::Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
            }
            _ => {}
        }
    }
    let address = address.filter(|address| !address.is_multicast())?;
    Some(agent::Neighbour {
        address: address.to_string(),
        mac: mac_text(&mac?),
        link: name(message.header.ifindex)?,
        ..Default::default()
    })
}

fn mac_text(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn link_message(index: u32, name: &str, flags: LinkFlags, mtu: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Address(vec![2, 0, 10, 88, 0, u8::try_from(index).unwrap()]),
            LinkAttribute::Mtu(mtu),
        ];
        message
    }

    fn address_message(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = prefix;
        message.attributes = vec![AddressAttribute::Address(address)];
        message
    }

    fn route_message(attributes: Vec<RouteAttribute>, protocol: RouteProtocol) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = rtnetlink::packet_route::AddressFamily::Inet;
        message.header.kind = RouteType::Unicast;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = protocol;
        message.attributes = attributes;
        message
    }

    fn v4(a: u8, b: u8, c: u8, d: u8) -> RouteAddress {
        RouteAddress::Inet(Ipv4Addr::new(a, b, c, d))
    }

    #[test]
    fn links_that_are_up_are_handed_on_in_their_order() {
        let loopback = LinkFlags::Up | LinkFlags::Loopback;
        let found = Found {
            links: vec![
                link_message(4, "net1", LinkFlags::Up, 1400),
                link_message(1, "lo", loopback, 65536),
                link_message(2, "eth0", LinkFlags::Up, 1500),
                link_message(3, "down0", LinkFlags::empty(), 1500),
                link_message(5, "huge0", LinkFlags::Up, 70_000),
            ],
            ..Found::default()
        };
        let names: Vec<_> = found.links().into_iter().map(|link| (link.name, link.mtu)).collect();
        assert_eq!(names, [("eth0".to_owned(), 1500), ("net1".to_owned(), 1400)]);
    }

    #[test]
    fn link_gets_its_addresses_but_those_of_link_scope() {
        let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        let found = Found {
            links: vec![link_message(2, "eth0", LinkFlags::Up, 1500)],
            addresses: vec![
                address_message(2, IpAddr::V4(Ipv4Addr::new(10, 88, 0, 5)), 16),
                address_message(2, IpAddr::V6(link_local), 64),
                address_message(2, "fd00::5".parse().unwrap(), 64),
                address_message(3, IpAddr::V4(Ipv4Addr::new(10, 99, 0, 5)), 16),
            ],
            ..Found::default()
        };
        let request = found.request(&found.links());
        assert_eq!(request.links[0].mac, "02:00:0a:58:00:02");
        assert_eq!(request.links[0].addresses, ["10.88.0.5/16", "fd00::5/64"]);
    }

    #[test]
    fn routes_without_a_gateway_come_first_and_the_kernels_own_not_at_all() {
        let through = vec![RouteAttribute::Gateway(v4(169, 254, 1, 1)), RouteAttribute::Oif(2)];
        let mut on_link = route_message(
            vec![RouteAttribute::Destination(v4(169, 254, 1, 1)), RouteAttribute::Oif(2)],
            RouteProtocol::Boot,
        );
        on_link.header.destination_prefix_length = 32;
        on_link.header.scope = rtnetlink::packet_route::route::RouteScope::Link;
        let found = Found {
            links: vec![link_message(2, "eth0", LinkFlags::Up, 1500)],
            routes: vec![
                route_message(through, RouteProtocol::Boot),
                on_link,
                route_message(
                    vec![RouteAttribute::Destination(v4(10, 88, 0, 0)), RouteAttribute::Oif(2)],
                    RouteProtocol::Kernel,
                ),
                route_message(
                    vec![RouteAttribute::Destination(v4(10, 99, 0, 0)), RouteAttribute::Oif(7)],
                    RouteProtocol::Boot,
                ),
            ],
            ..Found::default()
        };
        let request = found.request(&found.links());
        let told: Vec<_> = request
            .routes
            .iter()
            .map(|route| {
                (route.destination.as_str(), route.gateway.as_str(), route.link.as_str(), route.scope)
            })
            .collect();
        assert_eq!(told, [("169.254.1.1/32", "", "eth0", 253), ("0.0.0.0/0", "169.254.1.1", "eth0", 0)]);
    }

    #[test]
    fn route_keeps_its_mtu_its_priority_and_its_onlink_flag() {
        let mut message = route_message(
            vec![
                RouteAttribute::Gateway(v4(10, 0, 0, 1)),
                RouteAttribute::Oif(2),
                RouteAttribute::Priority(100),
                RouteAttribute::Metrics(vec![RouteMetric::Mtu(1450)]),
            ],
            RouteProtocol::Boot,
        );
        message.header.flags = RouteFlags::Onlink;
        let links = vec![link_message(2, "eth0", LinkFlags::Up, 1500)];
        let found = Found { links, routes: vec![message], ..Found::default() };
        let route = &found.request(&found.links()).routes[0];
        assert_eq!((route.mtu, route.priority, route.onlink), (1450, 100, true));
        assert!(found.has_plain_routes());
    }

    #[test]
    fn route_by_several_hops_is_not_told_as_one_without_a_gateway() {
        let several = route_message(vec![RouteAttribute::MultiPath(Vec::new())], RouteProtocol::Boot);
        assert!(!Found { routes: vec![several], ..Found::default() }.has_plain_routes());
    }

    #[test]
    fn only_fixed_neighbours_are_told() {
        let neighbour = |state, last| {
            let mut message = NeighbourMessage::default();
            message.header.ifindex = 2;
            message.header.state = state;
            message.attributes = vec![
                NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(169, 254, 1, last))),
                NeighbourAttribute::LinkLayerAddress(vec![0xee; 6]),
            ];
            message
        };
        let found = Found {
            links: vec![link_message(2, "eth0", LinkFlags::Up, 1500)],
            neighbours: vec![neighbour(NeighbourState::Permanent, 1), neighbour(NeighbourState::Stale, 2)],
            ..Found::default()
        };
        let request = found.request(&found.links());
        assert_eq!(request.neighbours.len(), 1);
        assert_eq!(request.neighbours[0].address, "169.254.1.1");
        assert_eq!(request.neighbours[0].mac, "ee:ee:ee:ee:ee:ee");
    }
}
