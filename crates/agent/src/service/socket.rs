//! RPC methods on sockets that stand in for those of the host.

use std::sync::Arc;

use nacre_protocol::files::FileName;
use nacre_protocol::rpc::agent::{AddSocketRequest, Empty, SocketRequest};
use tokio::task::spawn_blocking;

use super::error::ServiceError;
use crate::agent::Agent;
use crate::container::SocketFile;

pub(super) async fn add(agent: Arc<Agent>, request: AddSocketRequest) -> Result<Empty, ServiceError> {
    let AddSocketRequest { name: text, number, mode, uid, gid, .. } = request;
    if mode > 0o777 {
        return Err(ServiceError::Invalid("a socket has a mode above 0777"));
    }
    let wanted = SocketFile { name: name(&text)?, number, mode, uid, gid };
    let added = spawn_blocking(move || agent.guest.sockets.add(&wanted)).await;
    added.map_err(|_| ServiceError::CutShort)?.map_err(ServiceError::Socket)?;
    Ok(Empty::new())
}

pub(super) async fn remove(agent: Arc<Agent>, request: SocketRequest) -> Result<Empty, ServiceError> {
    let name = name(&request.name)?;
    spawn_blocking(move || agent.guest.sockets.remove(&name)).await.map_err(|_| ServiceError::CutShort)?;
    Ok(Empty::new())
}

fn name(name: &str) -> Result<FileName, ServiceError> {
    name.parse().map_err(|_| ServiceError::Invalid("a socket's name is none"))
}
