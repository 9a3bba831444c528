//! Forgetting ended processes, and taking containers down.

use std::sync::Arc;

use nacre_protocol::id::ContainerId;
use tokio::task::spawn_blocking;

use super::error::ProcessError;
use super::process::Ended;
use crate::agent::Agent;
use crate::container::RemoveError;

/// A process or container that could not be deleted. It is still there, and deleting may be tried again.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// The id does not fit, or the process runs.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The container module failed.
    #[error(transparent)]
    Remove(#[from] RemoveError),
    /// The call that removes it has panicked.
    #[error("the removal was cut short")]
    CutShort,
}

/// Forgets an exec that has ended or was never started.
///
/// # Errors
/// [`DeleteError::Process`].
pub async fn delete_exec(agent: &Agent, id: &ContainerId, exec: &ContainerId) -> Result<Ended, DeleteError> {
    let instance = agent.table.container(id)?;
    let ended = instance.exec(exec)?.end_unstarted().await?;
    // Dropped at once: the id is free.
    let _retired = instance.retire_exec(exec)?;
    Ok(ended)
}

/// Takes a container down whose init has ended or was never started, with all its processes, mounts and its cgroup.
///
/// # Errors
/// [`DeleteError`].
pub async fn delete_container(agent: &Agent, id: &ContainerId) -> Result<Ended, DeleteError> {
    let instance = agent.table.container(id)?;
    let ended = instance.init().end_unstarted().await?;
    let reservation = agent.table.retire(id)?;
    let container = Arc::clone(instance.container());
    let removed = spawn_blocking(move || container.remove()).await;
    match removed {
        Ok(Ok(())) => {
            agent.events.forget(id);
            Ok(ended)
        }
        Ok(Err(error)) => {
            reservation.keep(instance);
            Err(error.into())
        }
        Err(_) => {
            reservation.keep(instance);
            Err(DeleteError::CutShort)
        }
    }
}
