//! RPC methods on volumes that cross by value.

use std::sync::Arc;

use nacre_protocol::files::FileName;
use nacre_protocol::rpc::agent::{self, Empty, SetVolumeRequest, VolumeRequest, volume_entry::Kind};
use tokio::task::spawn_blocking;

use super::error::ServiceError;
use crate::agent::Agent;
use crate::container::{VolumeContent, VolumeEntry};

pub(super) async fn set(agent: Arc<Agent>, request: SetVolumeRequest) -> Result<Empty, ServiceError> {
    let name = name(&request.name)?;
    let entries: Vec<_> = request.entries.into_iter().map(entry).collect::<Result<_, _>>()?;
    let volumes = Arc::clone(&agent.guest.volumes);
    let create = request.create;
    let done = spawn_blocking(move || {
        if create { volumes.create(&name, &entries) } else { volumes.change(&name, &entries) }
    });
    done.await.map_err(|_| ServiceError::CutShort)??;
    Ok(Empty::new())
}

pub(super) async fn remove(agent: Arc<Agent>, request: VolumeRequest) -> Result<Empty, ServiceError> {
    let name = name(&request.name)?;
    let volumes = Arc::clone(&agent.guest.volumes);
    spawn_blocking(move || volumes.remove(&name)).await.map_err(|_| ServiceError::CutShort)?;
    Ok(Empty::new())
}

fn name(name: &str) -> Result<FileName, ServiceError> {
    name.parse().map_err(|_| ServiceError::Invalid("a volume's name is none"))
}

fn entry(entry: agent::VolumeEntry) -> Result<VolumeEntry, ServiceError> {
    let content = match entry.kind {
        Some(Kind::Directory(_)) => VolumeContent::Directory,
        Some(Kind::File(content)) => VolumeContent::File(content),
        Some(Kind::Link(target)) => VolumeContent::Link(target),
        Some(_) | None => return Err(ServiceError::Invalid("an entry of a volume is nothing")),
    };
    Ok(VolumeEntry { path: entry.path, mode: entry.mode, uid: entry.uid, gid: entry.gid, content })
}
