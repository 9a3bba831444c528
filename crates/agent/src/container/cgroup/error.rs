//! What goes wrong with a cgroup.

use rustix::io::Errno;

use super::SETTLE;
use super::resources::InvalidResources;

/// A cgroup that does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A call on one of its files failed.
    #[error("{action} cgroup file {file}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Which file.
        file: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A value that the kernel does not take.
    #[error("cgroup file {file} does not take {value:?}")]
    Value {
        /// Which file.
        file: String,
        /// The value.
        value: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The guest kernel has no such limit.
    #[error("the guest kernel has no cgroup file {0}")]
    NoSuchFile(String),
    /// The update is not an OCI resources object.
    #[error("resources are not valid JSON of the OCI runtime specification")]
    Json(#[source] serde_json::Error),
    /// The update has a value that cannot be.
    #[error("resources")]
    Resources(#[from] InvalidResources),
    /// The device program was refused.
    #[error("cgroup device program")]
    Devices(#[source] Errno),
    /// Processes did not freeze, thaw or die in time.
    #[error("cgroup did not become {0} in {SETTLE:?}")]
    Timeout(&'static str),
    /// A container that may attach to others did not stand still while one was to be made.
    #[error(
        "container {0} has CAP_SYS_PTRACE and does not stand still, so that nothing can be started beside it"
    )]
    Held(String),
    /// A limit below what is in use, with checkBeforeUpdate.
    #[error("memory limit {limit} is below the {used} bytes in use")]
    InUse {
        /// The asked limit.
        limit: u64,
        /// The present use.
        used: u64,
    },
    /// The container made more cgroups or processes than can be listed.
    #[error("container has more than {0} {1}")]
    TooMany(usize, &'static str),
}

impl CgroupError {
    /// Whether the request is to blame.
    pub fn is_invalid(&self) -> bool {
        matches!(
            self,
            Self::Value { .. }
                | Self::NoSuchFile(_)
                | Self::Json(_)
                | Self::Resources(_)
                | Self::InUse { .. }
        )
    }
}
