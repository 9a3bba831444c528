//! Why a container or exec could not be created.

use rustix::io::Errno;

use super::cgroup::CgroupError;
use super::channel::ChannelError;
use super::orders::{Failure, FailureKind};
use super::plan::{InvalidProcess, InvalidSpec};
use super::rootfs::RootfsError;
use super::start::ExecError;

/// A container or process that could not be created; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The configuration.
    #[error("configuration")]
    Spec(#[from] InvalidSpec),
    /// The process object of an exec.
    #[error("process")]
    Process(#[from] InvalidProcess),
    /// The root file system.
    #[error("root file system")]
    Rootfs(#[from] RootfsError),
    /// The cgroup.
    #[error("cgroup")]
    Cgroup(#[from] CgroupError),
    /// A bind source, namespace file or device that the configuration names.
    #[error("{what} {path}")]
    Source {
        /// Its role.
        what: &'static str,
        /// Its path.
        path: String,
        /// Why it cannot be opened.
        #[source]
        source: Errno,
    },
    /// A bind source outside the directories that the host shares.
    #[error("bind source {0} is not under the shared directory")]
    BindOutside(String),
    /// A namespace file of another type.
    #[error("{path} is not a namespace file of the type that the configuration says")]
    WrongNamespace {
        /// Its path.
        path: String,
    },
    /// More descriptors than one message carries.
    #[error("the configuration needs {0} descriptors, at most 253 are possible")]
    TooManyFds(usize),
    /// The child's PID namespace could not be found out.
    #[error("process namespace")]
    ProcessNamespace(#[source] Errno),
    /// The child could not be made.
    #[error("start {exe}")]
    Spawn {
        /// The agent's binary.
        exe: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The orders could not be written down.
    #[error("write the orders")]
    Orders(#[source] Errno),
    /// The child was lost.
    #[error("the child does not answer ({0})")]
    Child(&'static str, #[source] ChannelError),
    /// The child did something out of order.
    #[error("the child sent an unexpected report: {0}")]
    Protocol(String),
    /// A step of the child failed.
    #[error("{step}: {message}")]
    Step {
        /// Its name.
        step: String,
        /// What went wrong.
        message: String,
        /// Whether configuration or image are to blame.
        invalid: bool,
    },
    /// The program.
    #[error(transparent)]
    Exec(ExecError),
}

impl CreateError {
    /// Whether the request is to blame, not the guest.
    pub fn is_invalid(&self) -> bool {
        match self {
            Self::Spec(_) | Self::Process(_) | Self::BindOutside(_) | Self::WrongNamespace { .. } => true,
            Self::TooManyFds(_) | Self::Exec(_) => true,
            Self::Source { source, .. } => *source == Errno::NOENT,
            Self::Cgroup(error) => error.is_invalid(),
            Self::Rootfs(error) => error.is_invalid(),
            Self::Step { invalid, .. } => *invalid,
            Self::ProcessNamespace(_)
            | Self::Spawn { .. }
            | Self::Orders(_)
            | Self::Child(..)
            | Self::Protocol(_) => false,
        }
    }
}

impl From<Failure> for CreateError {
    fn from(failure: Failure) -> Self {
        let invalid = match failure.kind {
            FailureKind::Exec(error) => return Self::Exec(error),
            FailureKind::Invalid => true,
            FailureKind::Internal => false,
        };
        Self::Step { step: failure.step, message: failure.message, invalid }
    }
}
