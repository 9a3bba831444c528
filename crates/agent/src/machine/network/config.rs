//! A network configuration, checked.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use nacre_protocol::rpc::agent::ConfigureNetworkRequest;

/// Most entries of each list: far above what a pod has, far below what would hurt.
const MAX_ENTRIES: usize = 1024;

/// Longest link name: IFNAMSIZ without its NUL.
const MAX_LINK_NAME: usize = 15;

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// What the host wants, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkConfig {
    pub(super) links: Vec<Link>,
    pub(super) routes: Vec<Route>,
    pub(super) neighbours: Vec<Neighbour>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) mac: Mac,
    pub(super) name: String,
    pub(super) mtu: Option<u32>,
    pub(super) addresses: Vec<(IpAddr, u8)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) destination: IpAddr,
    pub(super) prefix: u8,
    pub(super) gateway: Option<IpAddr>,
    pub(super) link: String,
    pub(super) source: Option<IpAddr>,
    pub(super) scope: u8,
    pub(super) mtu: Option<u32>,
    pub(super) priority: Option<u32>,
    pub(super) onlink: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) address: IpAddr,
    pub(super) mac: Mac,
    pub(super) link: String,
}

/// A configuration that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not six bytes in hexadecimal, colons between.
    #[error("{0:?} is not a MAC address")]
    Mac(String),
    /// Not a name that Linux gives a link.
    #[error("{0:?} is not a link name")]
    LinkName(String),
    /// Not an IP address.
    #[error("{0:?} is not an IP address")]
    Address(String),
    /// Not an IP address with a prefix length.
    #[error("{0:?} is not an address in CIDR notation")]
    Cidr(String),
    /// Addresses of one route of both families.
    #[error("route to {0} mixes IPv4 and IPv6")]
    MixedFamilies(IpAddr),
    /// Not a byte.
    #[error("{0} is not a route scope")]
    Scope(u32),
    /// A route without gateway and link leads nowhere.
    #[error("route to {0} names no link, and there is not exactly one")]
    NoLink(IpAddr),
    /// A list is longer than [`MAX_ENTRIES`].
    #[error("{0} entries are too many")]
    TooMany(usize),
}

impl NetworkConfig {
    /// Parses a request.
    ///
    /// # Errors
    /// [`ConfigError`] for the first entry that makes no sense.
    pub fn parse(request: &ConfigureNetworkRequest) -> Result<Self, ConfigError> {
        let addresses = request.links.iter().map(|link| link.addresses.len()).sum();
        let longest = [request.links.len(), request.routes.len(), request.neighbours.len(), addresses];
        if let Some(count) = longest.into_iter().find(|count| *count > MAX_ENTRIES) {
            return Err(ConfigError::TooMany(count));
        }
        let links = request.links.iter().map(Link::parse).collect::<Result<Vec<_>, _>>()?;
        let only = if let [link] = links.as_slice() { Some(link.name.clone()) } else { None };
        let routes = request
            .routes
            .iter()
            .map(|route| Route::parse(route, only.as_deref()))
            .collect::<Result<_, _>>()?;
        let neighbours = request.neighbours.iter().map(Neighbour::parse).collect::<Result<_, _>>()?;
        Ok(Self { links, routes, neighbours })
    }
}

impl Link {
    fn parse(link: &nacre_protocol::rpc::agent::Link) -> Result<Self, ConfigError> {
        Ok(Self {
            mac: link.mac.parse()?,
            name: link_name(&link.name)?,
            mtu: Some(link.mtu).filter(|mtu| *mtu > 0),
            addresses: link.addresses.iter().map(|text| cidr(text)).collect::<Result<_, _>>()?,
        })
    }
}

impl Route {
    fn parse(route: &nacre_protocol::rpc::agent::Route, only: Option<&str>) -> Result<Self, ConfigError> {
        let gateway = optional_address(&route.gateway)?;
        let source = optional_address(&route.source)?;
        let (destination, prefix) = match (route.destination.as_str(), gateway) {
            ("" | "default", Some(IpAddr::V6(_))) => (IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 0),
            ("" | "default", _) => (IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
            (text, _) => cidr(text)?,
        };
        let same_family = |other: &IpAddr| other.is_ipv4() == destination.is_ipv4();
        if ![gateway, source].iter().flatten().all(same_family) {
            return Err(ConfigError::MixedFamilies(destination));
        }
        let link = match (route.link.as_str(), only) {
            ("", Some(only)) => only.to_owned(),
            ("", None) => return Err(ConfigError::NoLink(destination)),
            (name, _) => link_name(name)?,
        };
        let scope = u8::try_from(route.scope).map_err(|_| ConfigError::Scope(route.scope))?;
        let above_zero = |number: u32| Some(number).filter(|number| *number > 0);
        let (mtu, priority) = (above_zero(route.mtu), above_zero(route.priority));
        Ok(Self { destination, prefix, gateway, link, source, scope, mtu, priority, onlink: route.onlink })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route to {}/{}", self.destination, self.prefix)?;
        if let Some(gateway) = self.gateway {
            write!(f, " through {gateway}")?;
        }
        write!(f, " on {}", self.link)
    }
}

impl Neighbour {
    fn parse(neighbour: &nacre_protocol::rpc::agent::Neighbour) -> Result<Self, ConfigError> {
        Ok(Self {
            address: address(&neighbour.address)?,
            mac: neighbour.mac.parse()?,
            link: link_name(&neighbour.link)?,
        })
    }
}

impl FromStr for Mac {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = || ConfigError::Mac(text.to_owned());
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(mac)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What `dev_valid_name` of the kernel takes, without the characters that only confuse.
fn link_name(name: &str) -> Result<String, ConfigError> {
    let good = (1..=MAX_LINK_NAME).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.' | b'@'))
        && !matches!(name, "." | "..");
    if good { Ok(name.to_owned()) } else { Err(ConfigError::LinkName(name.to_owned())) }
}

fn address(text: &str) -> Result<IpAddr, ConfigError> {
    text.parse().map_err(|_| ConfigError::Address(text.to_owned()))
}

fn optional_address(text: &str) -> Result<Option<IpAddr>, ConfigError> {
    if text.is_empty() { Ok(None) } else { address(text).map(Some) }
}

fn cidr(text: &str) -> Result<(IpAddr, u8), ConfigError> {
    let bad = || ConfigError::Cidr(text.to_owned());
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if prefix.is_empty() || !prefix.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(bad());
    }
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= most).ok_or_else(bad)?;
    Ok((address, prefix))
}

#[cfg(test)]
mod tests {
    use nacre_protocol::rpc::agent;
    use proptest::prelude::*;

    use super::*;

    fn request() -> ConfigureNetworkRequest {
        let mut link = agent::Link::new();
        link.mac = "02:00:0a:58:00:05".to_owned();
        link.name = "eth0".to_owned();
        link.mtu = 1500;
        link.addresses = vec!["10.88.0.5/16".to_owned()];
        let mut request = ConfigureNetworkRequest::new();
        request.links.push(link);
        request
    }

    #[test]
    fn default_route_takes_the_family_of_its_gateway() {
        let mut request = request();
        let mut route = agent::Route::new();
        route.gateway = "fe80::1".to_owned();
        request.routes.push(route);
        let config = NetworkConfig::parse(&request).unwrap();
        assert_eq!(config.routes[0].to_string(), "route to ::/0 through fe80::1 on eth0");
    }

    #[test]
    fn route_of_two_families_is_refused() {
        let mut request = request();
        let mut route = agent::Route::new();
        route.destination = "10.0.0.0/8".to_owned();
        route.gateway = "fe80::1".to_owned();
        request.routes.push(route);
        assert!(matches!(NetworkConfig::parse(&request), Err(ConfigError::MixedFamilies(_))));
    }

    #[test]
    fn bad_macs_are_refused() {
        for bad in [
            "",
            "02:00:0a:58:00",
            "02:00:0a:58:00:05:06",
            "+2:00:0a:58:00:05",
            "2:0:a:58:0:5",
            "02-00-0a-58-00-05",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bad_link_names_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "a\0", "sixteen-letters-"] {
            assert!(link_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bad_prefixes_are_refused() {
        for bad in ["10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/+8", "::1/129", "10.0.0.1/8/8"] {
            assert!(cidr(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn mac_round_trips(bytes: [u8; 6]) {
            prop_assert_eq!(Mac(bytes).to_string().parse(), Ok(Mac(bytes)));
        }

        #[test]
        fn any_text_parses_or_not_without_panic(text in ".{0,60}") {
            let _ = text.parse::<Mac>();
            let _ = cidr(&text);
            let _ = link_name(&text);
        }
    }
}
