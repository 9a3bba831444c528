//! Making a container or an exec: its streams, its process, its place in the table.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::id::ContainerId;
use nacre_protocol::rpc::agent::Stdio;
use tokio::task::spawn_blocking;

use super::error::ProcessError;
use super::instance::{Instance, Watch};
use super::oom::watch_oom;
use super::process::{Process, Role};
use crate::agent::Agent;
use crate::container::{
    self, BlockDevice, BundleFile, CgroupError, Container, CreateError, CreateInput, CreatedContainer,
    CreatedProcess, ExecInput, RootfsSource,
};
use crate::stream::{ClaimError, Claimed, Plan, StdioError, Unclaimed};

/// How long a killed child may take to end while a creation is undone.
const UNDO_TIMEOUT: Duration = Duration::from_secs(10);

/// A container or exec that was not made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The id does not fit.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The streams were asked for in a way that makes no sense.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// A stream connection did not come.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The container module failed.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Its memory limit cannot be watched.
    #[error("cannot watch the container's memory limit")]
    Cgroup(#[from] CgroupError),
    /// A descriptor cannot be watched.
    #[error("cannot watch a descriptor")]
    Watch(#[source] io::Error),
    /// The call that makes it has panicked.
    #[error("the creation was cut short")]
    CutShort,
}

/// A container as the host describes it.
#[derive(Debug)]
pub struct Wanted {
    /// OCI config.json.
    pub spec_json: Vec<u8>,
    /// Where `/` comes from.
    pub rootfs: RootfsSource,
    /// Sources of bind mounts.
    pub files: Vec<BundleFile>,
    /// Disks that it uses as they are.
    pub devices: Vec<BlockDevice>,
}

/// What the host is told of a new container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Its init.
    pub pid: u32,
    /// Microseconds for the root file system.
    pub rootfs_us: u64,
    /// Microseconds for all of it.
    pub create_us: u64,
}

/// Makes a container up to, not including, exec.
///
/// # Errors
/// [`MakeError`].
pub async fn create_container(
    agent: &Agent,
    id: ContainerId,
    wanted: Wanted,
    stdio: &Stdio,
) -> Result<Made, MakeError> {
    let reservation = agent.table.reserve(&id)?;
    let (plan, child_stdio) = Plan::new(stdio)?;
    let Wanted { spec_json, rootfs, files, devices } = wanted;
    let input = CreateInput { id: id.clone(), spec_json, rootfs, files, devices, stdio: child_stdio };
    let guest = agent.guest.clone();
    let make = move || container::create(&guest, input);
    let (created, claimed) = with_streams(plan, &agent.streams, make).await?;
    let CreatedContainer { init, container, rootfs_us, create_us } = created;
    let pid = init.child.pid();
    let unmade = Unmade { child: init.child.clone(), container: Some(Arc::clone(&container)) };

    let claimed = match claimed {
        Ok(claimed) => claimed,
        Err(error) => return Err(unmade.undo(Some(init), error.into()).await),
    };
    let watch = watch(&container, &id, agent);
    let process = match assemble(init, claimed, &container, Role::Init) {
        Ok(process) => process,
        Err(error) => return Err(unmade.undo(None, error).await),
    };
    reservation.keep(Arc::new(Instance::new(id, container, process, watch)));
    Ok(Made { pid, rootfs_us, create_us })
}

/// Makes a further process of a container up to, not including, exec.
///
/// # Errors
/// [`MakeError`].
pub async fn create_exec(
    agent: &Agent,
    id: &ContainerId,
    exec: &ContainerId,
    process_json: Vec<u8>,
    stdio: &Stdio,
) -> Result<(), MakeError> {
    let instance = agent.table.container(id)?;
    if instance.init().ended().is_some() {
        return Err(ProcessError::Finished.into());
    }
    let reservation = instance.reserve_exec(exec)?;
    let (plan, child_stdio) = Plan::new(stdio)?;
    let input = ExecInput { process_json, stdio: child_stdio };
    let (guest, container) = (agent.guest.clone(), Arc::clone(instance.container()));
    let make = move || container::create_exec(&guest, &container, input);
    let (created, claimed) = with_streams(plan, &agent.streams, make).await?;
    let unmade = Unmade { child: created.child.clone(), container: None };

    let claimed = match claimed {
        Ok(claimed) => claimed,
        Err(error) => return Err(unmade.undo(Some(created), error.into()).await),
    };
    match assemble(created, claimed, instance.container(), Role::Exec) {
        Ok(process) => reservation.keep(process),
        Err(error) => return Err(unmade.undo(None, error).await),
    }
    Ok(())
}

/// Runs the blocking `make` while stream connections arrive. An error of `make` does not wait for them; an
/// error of theirs waits for `make`, whose result must be undone.
async fn with_streams<T: Send + 'static>(
    plan: Plan,
    streams: &Unclaimed,
    make: impl FnOnce() -> Result<T, CreateError> + Send + 'static,
) -> Result<(T, Result<Claimed, ClaimError>), MakeError> {
    let mut making = spawn_blocking(make);
    let mut claiming = std::pin::pin!(plan.claim(streams));
    tokio::select! {
        made = &mut making => {
            let made = made.map_err(|_| MakeError::CutShort)??;
            Ok((made, claiming.await))
        }
        claimed = &mut claiming => {
            let made = making.await.map_err(|_| MakeError::CutShort)??;
            Ok((made, claimed))
        }
    }
}

/// Watches its memory limit. Without (a kernel that has no memory controller) the container is as good as any.
fn watch(container: &Container, id: &ContainerId, agent: &Agent) -> Option<Watch> {
    let watched = match container.cgroup().memory_events() {
        Ok(file) => watch_oom(file, id.clone(), Arc::clone(&agent.events)).map_err(MakeError::Watch),
        Err(error) => Err(error.into()),
    };
    match watched {
        Ok(watch) => Some(watch),
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, container = %id, "memory limit not watched");
            None
        }
    }
}

/// Starts the copying and puts the process together. Where that fails, the child exits, its starter gone.
fn assemble(
    created: CreatedProcess,
    claimed: Claimed,
    container: &Arc<Container>,
    role: Role,
) -> Result<Arc<Process>, MakeError> {
    let CreatedProcess { child, starter, terminal } = created;
    let streams = claimed.attach(terminal).map_err(MakeError::Watch)?;
    Ok(Arc::new(Process::new(child, starter, streams, Arc::clone(container), role)))
}

/// A creation that may still have to be undone.
struct Unmade {
    child: super::Child,
    container: Option<Arc<Container>>,
}

impl Unmade {
    /// Takes everything down, in reverse order, and gives the error on.
    async fn undo(self, process: Option<CreatedProcess>, error: MakeError) -> MakeError {
        let undone = spawn_blocking(move || {
            drop(process);
            if !self.child.kill_and_wait(UNDO_TIMEOUT) {
                tracing::error!(pid = self.child.pid(), "process of a failed creation does not end");
            }
            if let Some(Err(error)) = self.container.map(|container| container.remove()) {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "container of a failed creation not removed");
            }
        });
        // A panic in there is logged by its hook; the first error is what the host should know.
        let _ = undone.await;
        error
    }
}
