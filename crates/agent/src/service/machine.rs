//! RPC methods on the guest as a machine.

use std::sync::Arc;

use nacre_protocol::rpc::agent::{
    ConfigureNetworkRequest, Empty, EventReply, HelloReply, HelloRequest, IdMapping, SlotRequest,
};
use tokio::task::spawn_blocking;

use super::error::ServiceError;
use crate::agent::Agent;
use crate::container::IdMaps;
use crate::log::{self, Level};
use crate::machine::network::{self, Links, NetworkConfig};
use crate::machine::{self, Facts, Identity};

pub(super) async fn hello(agent: Arc<Agent>, request: HelloRequest) -> Result<HelloReply, ServiceError> {
    let level: Level = request.log_level.parse().map_err(|_| ServiceError::Invalid("unknown log level"))?;
    log::set_level(level);
    enter_namespaces(&agent, &request).await?;
    Identity::new(request.hostname, request.realtime_ns, request.entropy)?.apply()?;
    if !request.shares_tag.is_empty() {
        let target = agent.guest.shares_dir.clone();
        let tag = request.shares_tag;
        blocking(move || machine::mount_shares(&tag, &target)).await?;
    }
    let (init_started_us, ready_us) = agent.boot_times_us();
    let Facts { kernel_release, memory_total_bytes, cpus_online } = Facts::gather();
    Ok(HelloReply {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release,
        init_started_us,
        ready_us,
        memory_total_bytes,
        cpus_online,
        replied_us: machine::boottime_us(),
        ..Default::default()
    })
}

/// Makes the namespaces of containers that are in a user namespace, and enters those that it owns: here and not on another
/// thread, since the first thread's are those of `/proc/1/ns`, and new threads begin in them.
async fn enter_namespaces(agent: &Arc<Agent>, request: &HelloRequest) -> Result<(), ServiceError> {
    let lines = |maps: &[IdMapping]| -> Vec<_> {
        maps.iter().map(|map| (map.container, map.guest, map.size)).collect()
    };
    let Some(maps) = IdMaps::new(lines(&request.uid_mappings), lines(&request.gid_mappings))? else {
        return Ok(());
    };
    let birthplace = Links::open()?;
    let guest = agent.guest.clone();
    blocking(move || guest.launcher.make_namespaces(&guest, maps).map(drop)).await?;
    let namespaces = agent.guest.launcher.namespaces().ok_or(ServiceError::CutShort)?;
    let error = |errno: rustix::io::Errno| ServiceError::Namespaces(errno.into());
    let network = rustix::io::fcntl_dupfd_cloexec(namespaces.network(), 3).map_err(error)?;
    namespaces.enter().map_err(error)?;
    network::loopback_up()?;
    *agent.birthplace() = Some(birthplace.leading_to(network));
    Ok(())
}

pub(super) async fn bind_slot(request: SlotRequest) -> Result<Empty, ServiceError> {
    blocking(move || machine::bind(request.slot)).await?;
    Ok(Empty::new())
}

pub(super) async fn unbind_slot(request: SlotRequest) -> Result<Empty, ServiceError> {
    blocking(move || machine::unbind(request.slot)).await?;
    Ok(Empty::new())
}

pub(super) async fn configure_network(
    agent: Arc<Agent>,
    request: ConfigureNetworkRequest,
) -> Result<Empty, ServiceError> {
    let config = NetworkConfig::parse(&request)?;
    // Here: a thread that was made before the namespaces were is still in the old one.
    let links = Links::open()?;
    blocking(move || network::configure(links, agent.birthplace().as_mut(), &config)).await?;
    Ok(Empty::new())
}

pub(super) async fn next_event(agent: &Agent) -> EventReply {
    let container = agent.events.next().await;
    EventReply { container_id: container.into(), kind: "oom".to_owned(), ..Default::default() }
}

pub(super) async fn shutdown(agent: Arc<Agent>) -> Result<Empty, ServiceError> {
    agent.end().await;
    Ok(Empty::new())
}

async fn blocking<T, E>(call: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, ServiceError>
where
    T: Send + 'static,
    E: Send + 'static,
    ServiceError: From<E>,
{
    Ok(spawn_blocking(call).await.map_err(|_| ServiceError::CutShort)??)
}
