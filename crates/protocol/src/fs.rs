//! How `nacre-fs`, the jailed file server, is started.
//!
//! Its owner (the shim) gives it one end of a `SOCK_SEQPACKET` pair as descriptor [`START_FD`] and sends one JSON
//! message there, a [`Start`] with its descriptors (`SCM_RIGHTS`), at most [`crate::control::MAX_MESSAGE`] bytes.
//! The server jails itself, begins to serve the vhost-user socket and answers with one [`StartReply`]. It ends
//! when the vhost-user peer or the owner's end of the pair is closed.

use serde::{Deserialize, Serialize};

use crate::control::Failure;
use crate::vm::FdIndex;

/// Descriptor number of the start socket in the server.
pub const START_FD: i32 = 3;

/// Most shares of one server: one descriptor each, and one for the vhost-user socket, in one message.
pub const MAX_SHARES: usize = crate::control::MAX_FDS - 1;

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
}

/// Answer of the server: it serves, or why not.
pub type StartReply = Result<(), Failure>;
