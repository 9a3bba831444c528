//! Link and tap, joined by traffic control: an ingress qdisc on each, and on it a filter that takes every frame over to
//! the other one's egress (tc-mirred(8)).

use rtnetlink::packet_route::tc::{TcAttribute, TcHandle};
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
