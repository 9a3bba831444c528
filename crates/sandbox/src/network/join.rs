//! Link and tap, joined by traffic control: an ingress qdisc on each, and on it a filter that takes every frame over to
//! the other one's egress (tc-mirred(8)).

use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterU32Option, TcHandle, TcMirror, TcMirrorActionType, TcU32Key, TcU32Selector,
    TcU32SelectorFlags,
};
use rtnetlink::{Error, Handle, LinkUnspec};

use super::found::Link;
use super::{NetworkError, netlink};

/// Parent of filters of an ingress qdisc (`ffff:`, include/uapi/linux/pkt_sched.h).
const INGRESS: u32 = 0xffff_0000;

/// ETH_P_ALL, as the kernel has it in a filter: in network byte order.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// Brings the tap up with the link's MTU and joins both.
pub(super) async fn join(handle: &Handle, link: &Link, tap: &str) -> Result<(), NetworkError> {
    let tap = index_of(handle, tap).await.map_err(netlink("find the tap"))?;
    let up = LinkUnspec::new_with_index(tap).mtu(u32::from(link.mtu)).up().build();
    handle.link().set(up).execute().await.map_err(netlink("bring the tap up"))?;
    // What an earlier sandbox left on the link, if anything.
    let _ = let_go(handle, link.index).await;
    for (from, to) in [(link.index, tap), (tap, link.index)] {
        redirect(handle, from, to).await?;
    }
    Ok(())
}

async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<(), NetworkError> {
    let index = from.cast_signed();
    let qdisc = handle.qdisc().add(index).ingress().execute().await;
    qdisc.map_err(netlink("add an ingress qdisc; has the kernel sch_ingress?"))?;
    let filter = handle.traffic_filter(index).add().parent(INGRESS).protocol(ALL_PROTOCOLS).redirect(to);
    let added = filter.map_err(netlink("make a filter"))?.execute().await;
    added.map_err(netlink("add a filter; has the kernel cls_u32 and act_mirred?"))
}

/// Ports that the namespace's own stack sends name queries from: few, and beyond those that a guest draws by itself.
pub(super) const NAME_PORTS: std::ops::RangeInclusive<u16> = 0xfe00..=0xffff;

/// ETH_P_IP and ETH_P_ARP (include/uapi/linux/if_ether.h).
const IPV4: u16 = 0x0800_u16.to_be();
const ARP: u16 = 0x0806_u16.to_be();

/// Port of name servers.
const NAME_SERVER: u16 = 53;

/// Lets the namespace's own stack have what answers its name queries: Docker's name server asks others from within the
/// namespace. Of ARP, it and the guest get a copy each: they have the same address, and answer the same.
pub(super) async fn let_names_through(handle: &Handle, link: u32, tap: &str) -> Result<(), NetworkError> {
    let tap = index_of(handle, tap).await.map_err(netlink("find the tap"))?;
    let everything = vec![key(0, 0, 0)];
    filter(handle, link, 1, ARP, &selected(everything, Some(copied_to(tap)))).await?;
    for (priority, protocol) in [(2, libc::IPPROTO_UDP), (3, libc::IPPROTO_TCP)] {
        // To the stack: a filter that ends the classification and does nothing.
        let keys = answers_of_name_servers(protocol.cast_unsigned());
        filter(handle, link, priority, IPV4, &selected(keys, None)).await?;
    }
    Ok(())
}

/// IPv4 (RFC 791, section 3.1) without options, not a later fragment; then the ports, which UDP and TCP have in the same place.
fn answers_of_name_servers(protocol: u32) -> Vec<TcU32Key> {
    let ports = u32::from(NAME_SERVER) << 16 | u32::from(*NAME_PORTS.start());
    vec![
        key(0x4500_0000, 0xff00_0000, 0),
        key(0, 0x0000_1fff, 4),
        key(protocol << 16, 0x00ff_0000, 8),
        key(ports, 0xffff_fe00, 20),
    ]
}

/// Four bytes at this offset of the network header.
fn key(value: u32, mask: u32, offset: i32) -> TcU32Key {
    let mut key = TcU32Key::default();
    (key.val, key.mask, key.off) = (value, mask, offset);
    key
}

fn selected(keys: Vec<TcU32Key>, action: Option<TcAction>) -> Vec<TcFilterU32Option> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = u8::try_from(keys.len()).unwrap_or(u8::MAX);
    selector.keys = keys;
    let mut options = vec![TcFilterU32Option::Selector(selector)];
    options.extend(action.map(|action| TcFilterU32Option::Action(vec![action])));
    options
}

/// Sends a copy out of a link, and lets the frame go on.
fn copied_to(index: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Ok;
    mirror.eaction = TcMirrorActionType::EgressMirror;
    mirror.ifindex = index;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_string()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    action
}

async fn filter(
    handle: &Handle,
    link: u32,
    priority: u16,
    protocol: u16,
    options: &[TcFilterU32Option],
) -> Result<(), NetworkError> {
    let request = handle.traffic_filter(link.cast_signed()).add().parent(INGRESS);
    let filter = request.priority(priority).protocol(protocol).u32(options);
    let added = filter.map_err(netlink("make a filter"))?.execute().await;
    added.map_err(netlink("add a filter for answers to name queries"))
}

/// Takes the qdisc with its filter off a link.
pub(super) async fn let_go(handle: &Handle, index: u32) -> Result<(), Error> {
    let mut request = handle.qdisc().del(index.cast_signed());
    request.message_mut().header.parent = TcHandle::INGRESS;
    // Else it would take the clsact of somebody else as well, whose parent is the same.
    request.message_mut().attributes.push(TcAttribute::Kind("ingress".to_owned()));
    request.execute().await
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, Error> {
    let links = super::found::all(handle.link().get().match_name(name.to_owned()).execute()).await?;
    links.first().map(|link| link.header.index).ok_or(Error::RequestFailed)
}
