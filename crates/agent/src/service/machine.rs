//! RPC methods on the guest as a machine.

use std::sync::Arc;

use nacre_protocol::rpc::agent::{
    ConfigureNetworkRequest, Empty, EventReply, HelloReply, HelloRequest, SlotRequest,
};
use tokio::task::spawn_blocking;

use super::error::ServiceError;
use crate::agent::Agent;
use crate::log::{self, Level};
use crate::machine::network::{self, NetworkConfig};
use crate::machine::{self, Facts, Identity};

pub(super) async fn hello(agent: Arc<Agent>, request: HelloRequest) -> Result<HelloReply, ServiceError> {
    let level: Level = request.log_level.parse().map_err(|_| ServiceError::Invalid("unknown log level"))?;
    log::set_level(level);
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

pub(super) async fn bind_slot(request: SlotRequest) -> Result<Empty, ServiceError> {
    blocking(move || machine::bind(request.slot)).await?;
    Ok(Empty::new())
}

pub(super) async fn unbind_slot(request: SlotRequest) -> Result<Empty, ServiceError> {
    blocking(move || machine::unbind(request.slot)).await?;
    Ok(Empty::new())
}

pub(super) async fn configure_network(request: ConfigureNetworkRequest) -> Result<Empty, ServiceError> {
    let config = NetworkConfig::parse(&request)?;
    blocking(move || network::configure(&config)).await?;
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
