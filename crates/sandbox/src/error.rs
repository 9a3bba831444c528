//! What can go wrong with a sandbox. The doors map each variant to a status of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::AgentError;
use crate::config::{CONFIG_PATH, TIMEOUT_ENV};
use crate::state::IllegalMove;
use crate::vm::{VmError, VmExit};

/// A request to a sandbox that failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is no such container here.
    #[error("container {0} is not in this sandbox")]
    NoContainer(String),
    /// There is no such exec here.
    #[error("exec {0} is not in this container")]
    NoExec(String),
    /// The sandbox has its container.
    #[error("this sandbox already has the container {0}")]
    HasContainer(String),
    /// A container of another pod.
    #[error("container {container} belongs to the pod {sandbox}, which is not this one")]
    OtherPod {
        /// Its id.
        container: String,
        /// The id of its pod's sandbox.
        sandbox: String,
    },
    /// More shares over the life of a sandbox than its file server can number.
    #[error(
        "this pod has been given 250 host directories and files over its life, more are not possible: recreate the pod"
    )]
    TooManyShares,
    /// A root or a volume that does not answer.
    #[error("the root file system or a volume did not answer within {} ms", .0.as_millis())]
    StorageTimeout(Duration),
    /// A sandbox that was made without a file server.
    #[error("this sandbox has no file server")]
    NoFileServer,
    /// An exec of that id is there.
    #[error("exec {0} exists")]
    HasExec(String),
    /// An id that cannot be one.
    #[error(transparent)]
    Id(#[from] nacre_protocol::id::IdError),
    /// The state does not allow it.
    #[error(transparent)]
    State(#[from] IllegalMove),
    /// A signal to a process that is over.
    #[error("process already finished")]
    Finished,
    /// The container does not run.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// The configuration cannot be read.
    #[error("cannot read {path}")]
    ReadSpec {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The configuration of the container cannot become a VM.
    #[error(transparent)]
    Plan(#[from] crate::plan::PlanError),
    /// Limits that are none.
    #[error("resources are not valid OCI linux.resources")]
    Resources(#[source] serde_json::Error),
    /// More memory than the guest has.
    #[error("memory limit of {wanted_mib} MiB is more than the {guest_mib} MiB of the running VM")]
    MemoryAboveGuest {
        /// The new limit.
        wanted_mib: u64,
        /// What the guest has.
        guest_mib: u32,
    },
    /// No KVM.
    #[error("cannot open /dev/kvm: {remedy}")]
    Kvm {
        /// What to do.
        remedy: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A file that a VM is made from is missing or damaged.
    #[error(transparent)]
    Asset(#[from] crate::assets::AssetError),
    /// The directory of the sandbox.
    #[error(transparent)]
    Record(#[from] crate::record::RecordError),
    /// The VMM's user id.
    #[error(transparent)]
    Jail(#[from] crate::jail::JailError),
    /// The host's cgroup.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// The root file system or a share.
    #[error(transparent)]
    Storage(#[from] crate::storage::StorageError),
    /// The network.
    #[error(transparent)]
    Network(#[from] crate::network::NetworkError),
    /// The file server.
    #[error(transparent)]
    FileServer(#[from] crate::file_server::FileServerError),
    /// A hook of the configuration.
    #[error(transparent)]
    Hook(#[from] crate::hooks::HookError),
    /// Standard streams.
    #[error(transparent)]
    Stdio(#[from] crate::stdio::StdioError),
    /// A socket or descriptor.
    #[error("cannot make {what}")]
    Socket {
        /// What it is.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The guest did not come up.
    #[error(
        "the guest was not ready within {} ms; {TIMEOUT_ENV} or timeouts.boot_ms in {CONFIG_PATH} allow more, and \
         `nacre check` tells whether this machine is fast enough; {}",
        timeout.as_millis(),
        exit.last_lines()
    )]
    BootTimeout {
        /// How long was waited.
        timeout: Duration,
        /// What its console said.
        exit: Arc<VmExit>,
    },
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The sandbox is shutting down.
    #[error("the sandbox is shutting down")]
    Closed,
}
