//! How `nacre-fs`, the jailed file server, is started.
//!
//! Its owner (the shim) gives it one end of a `SOCK_SEQPACKET` pair as descriptor [`START_FD`] and sends one JSON
//! message there, an [`Order`] with its descriptors (`SCM_RIGHTS`), at most [`crate::control::MAX_MESSAGE`] bytes, and
//! gets one [`StartReply`].
//!
//! After [`Order::Serve`] the process jails itself and serves the vhost-user socket; it ends when the vhost-user peer or
//! the owner's end of the pair is closed. A server in its jail can mount nothing: after [`Order::Change`] a second process of
//! the same program enters the server's mount namespace, changes what is served there, and ends.

use serde::{Deserialize, Serialize};

use crate::control::Failure;
use crate::vm::FdIndex;

/// Descriptor number of the start socket in the server.
pub const START_FD: i32 = 3;

/// Most shares of one server: one descriptor each, one for the vhost-user socket and one for a user namespace, in one message.
pub const MAX_SHARES: usize = crate::control::MAX_FDS - 2;

/// What the process is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// To be the server.
    Serve(Start),
    /// To change what a server serves.
    Change(Change),
}

/// What to change of a running server's shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// pidfd of the server.
    pub server: FdIndex,
    /// Further entries.
    pub add: Vec<Share>,
    /// Entries that go; one that is not there is no error. A guest that has files of them open keeps those.
    pub remove: Vec<String>,
}

/// What to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Listening Unix stream socket on which one connection waits, whose other end the VMM has
    /// ([`crate::vm::FsConfig`]). The owner has unlinked its path before it sends this.
    pub listener: FdIndex,
    /// Entries of the served root directory, which holds nothing else.
    pub shares: Vec<Share>,
}

/// One host file or directory, an entry of the served root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Name of the entry: one component, a valid [`crate::id::ContainerId`].
    pub name: String,
    /// `O_PATH` descriptor of the file or directory; nothing outside of it may be reached.
    pub file: FdIndex,
    /// Enforced by the server, whatever the guest asks.
    pub read_only: bool,
    /// What is mounted below the directory.
    #[serde(default)]
    pub submounts: Submounts,
    /// A user namespace of the host's, which several shares may name: an id that the mount has as one of the namespace's is
    /// the host's id of it to the guest, and the other way round (`MOUNT_ATTR_IDMAP` in mount_setattr(2)). What is mounted below keeps
    /// its ids.
    #[serde(default)]
    pub user_namespace: Option<FdIndex>,
}

/// What a share has of the mounts below its directory on the host. Those of the host's kernel (proc, sysfs ...) are never
/// served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Submounts {
    /// Those of the start, read-only where the share is.
    #[default]
    AsShare,
    /// Those of the start, as writable as on the host.
    AsHost,
    /// As `AsHost`, and those that come and go later (`MS_SLAVE` in mount_namespaces(7)).
    Following,
}

/// Answer of the server: it serves, or why not.
pub type StartReply = Result<(), Failure>;
