//! Standard streams: raw vsock connections from the host, and the copying between them and a process.
//!
//! ```text
//! host ── vsock STREAM_PORT ── listener ── hello ── Unclaimed ──claim(token)── Stdio ── copy tasks ── pipe or pty
//! ```
//!
//! Each direction is a task of its own with at most one bounded buffer; where the other side is slow, the task
//! waits and the writer is held back by its full pipe or used-up credit. Nothing here trusts a container:
//! it can only fill its own pipe, close it, or leave it unread.

mod copy;
mod fd;
mod listener;
mod stdio;
mod unclaimed;

pub use fd::AsyncStream;
pub use listener::{accept_hosts, accept_unix};
pub use stdio::{Attached, Claimed, Plan, StdioError};
pub use unclaimed::{ClaimError, Unclaimed};
