//! Requests that name a process or container in a way that does not fit.

use nacre_protocol::id::ContainerId;

/// A request that does not fit the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// No such container.
    #[error("container {0} does not exist")]
    NoContainer(ContainerId),
    /// No such exec.
    #[error("exec {exec} does not exist in container {container}")]
    NoExec {
        /// The container, which exists.
        container: ContainerId,
        /// What it does not have.
        exec: ContainerId,
    },
    /// The container's id is in use.
    #[error("container {0} exists already")]
    ContainerExists(ContainerId),
    /// The exec's id is in use.
    #[error("exec {exec} exists already in container {container}")]
    ExecExists {
        /// The container.
        container: ContainerId,
        /// The id.
        exec: ContainerId,
    },
    /// The container is being created or deleted.
    #[error("container {0} is being created or deleted")]
    Busy(ContainerId),
    /// Started before.
    #[error("process was started already")]
    AlreadyStarted,
    /// Delete of a process that runs.
    #[error("process is running")]
    StillRunning,
    /// The process has ended, so that it takes no signal and no further exec.
    #[error("process already finished")]
    Finished,
    /// Resize of a process without a terminal.
    #[error("process has no terminal")]
    NoTerminal,
    /// Not a signal number of Linux.
    #[error("{0} is not a signal number")]
    BadSignal(u32),
}
