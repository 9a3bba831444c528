//! RPC methods on containers.

use std::sync::Arc;

use nacre_protocol::id::ContainerId;
use nacre_protocol::rpc::agent::{
    self, ContainerRequest, CreateContainerReply, CreateContainerRequest, Empty, ListProcessesReply,
    StatsReply, UpdateRequest,
};
use tokio::task::spawn_blocking;

use super::error::ServiceError;
use crate::agent::Agent;
use crate::container::{Cgroup, CgroupError, LayerExtent, RootfsSource};
use crate::process::{self, Made};

/// Longest OCI document: far above any real one (C09), far below what would hurt.
pub(super) const MAX_DOCUMENT: usize = 2 << 20;

/// Most layers: overlayfs's own limit of lower directories (OVL_MAX_STACK).
const MAX_LAYERS: usize = 500;

pub(super) async fn create(
    agent: Arc<Agent>,
    mut request: CreateContainerRequest,
) -> Result<CreateContainerReply, ServiceError> {
    let id = request.container_id.parse()?;
    if request.spec_json.len() > MAX_DOCUMENT {
        return Err(ServiceError::Invalid("the OCI configuration is too long"));
    }
    let rootfs = rootfs(request.rootfs.take())?;
    let stdio = request.stdio.take().unwrap_or_default();
    let made = process::create_container(&agent, id, request.spec_json, rootfs, &stdio).await?;
    let Made { pid, rootfs_us, create_us } = made;
    Ok(CreateContainerReply { pid, rootfs_us, create_us, ..Default::default() })
}

pub(super) async fn list(
    agent: Arc<Agent>,
    request: ContainerRequest,
) -> Result<ListProcessesReply, ServiceError> {
    let pids = with_cgroup(&agent, &request.container_id, Cgroup::pids).await?;
    Ok(ListProcessesReply { pids, ..Default::default() })
}

pub(super) async fn freeze(agent: Arc<Agent>, request: ContainerRequest) -> Result<Empty, ServiceError> {
    with_cgroup(&agent, &request.container_id, Cgroup::freeze).await?;
    Ok(Empty::new())
}

pub(super) async fn thaw(agent: Arc<Agent>, request: ContainerRequest) -> Result<Empty, ServiceError> {
    with_cgroup(&agent, &request.container_id, Cgroup::thaw).await?;
    Ok(Empty::new())
}

pub(super) async fn update(agent: Arc<Agent>, request: UpdateRequest) -> Result<Empty, ServiceError> {
    if request.resources_json.len() > MAX_DOCUMENT {
        return Err(ServiceError::Invalid("the resources are too long"));
    }
    let UpdateRequest { container_id, resources_json, .. } = request;
    with_cgroup(&agent, &container_id, move |cgroup| cgroup.update(&resources_json)).await?;
    Ok(Empty::new())
}

pub(super) async fn stats(agent: Arc<Agent>, request: ContainerRequest) -> Result<StatsReply, ServiceError> {
    with_cgroup(&agent, &request.container_id, Cgroup::stats).await
}

/// Calls a function on a container's cgroup; it may block (freezing waits, statistics flush every CPU's share).
pub(super) async fn with_cgroup<T: Send + 'static>(
    agent: &Agent,
    id: &str,
    call: impl FnOnce(&Cgroup) -> Result<T, CgroupError> + Send + 'static,
) -> Result<T, ServiceError> {
    let id: ContainerId = id.parse()?;
    let container = Arc::clone(agent.table.container(&id)?.container());
    let called = spawn_blocking(move || call(container.cgroup())).await;
    Ok(called.map_err(|_| ServiceError::CutShort)??)
}

fn rootfs(rootfs: Option<agent::Rootfs>) -> Result<RootfsSource, ServiceError> {
    match rootfs.and_then(|rootfs| rootfs.source) {
        Some(agent::rootfs::Source::Layered(layered)) => {
            if layered.layers.is_empty() || layered.layers.len() > MAX_LAYERS {
                return Err(ServiceError::Invalid("a layered root file system has 1 to 500 layers"));
            }
            let extent = |layer: &agent::Layer| LayerExtent {
                offset_bytes: layer.offset_bytes,
                length_bytes: layer.length_bytes,
            };
            Ok(RootfsSource::Layered {
                disk_id: layered.disk_id,
                layers: layered.layers.iter().map(extent).collect(),
                upper_limit_bytes: layered.upper_limit_bytes,
            })
        }
        Some(agent::rootfs::Source::Shared(shared)) => Ok(RootfsSource::Shared { name: shared.name }),
        Some(_) | None => Err(ServiceError::Invalid("the container has no root file system")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rootfs_without_a_source_is_refused() {
        assert!(matches!(rootfs(None), Err(ServiceError::Invalid(_))));
        assert!(matches!(rootfs(Some(agent::Rootfs::new())), Err(ServiceError::Invalid(_))));
    }

    #[test]
    fn more_layers_than_overlayfs_stacks_are_refused() {
        let mut layered = agent::LayeredRootfs::new();
        layered.layers = vec![agent::Layer::new(); MAX_LAYERS + 1];
        let mut request = agent::Rootfs::new();
        request.source = Some(agent::rootfs::Source::Layered(layered));
        assert!(matches!(rootfs(Some(request)), Err(ServiceError::Invalid(_))));
    }
}
