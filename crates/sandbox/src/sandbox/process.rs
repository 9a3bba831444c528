//! A process as the sandbox keeps it: init or exec.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tokio::sync::Notify;

use super::Reply;
use crate::agent::ProcessName;
use crate::state::State;
use crate::stdio::{StdioRequest, Streams};

/// Exit status of a process that ended with its VM: 128 + SIGKILL.
pub(super) const KILLED: u32 = 137;

/// Names a process: a container, and an exec in it or (empty) its init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessId {
    /// The container.
    pub container: String,
    /// The exec; empty: init.
    pub exec: String,
}

impl From<&ProcessId> for ProcessName {
    fn from(id: &ProcessId) -> Self {
        Self { container: id.container.clone(), exec: id.exec.clone() }
    }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitInfo {
    /// Exit status; 128 + n for signal n.
    pub status: u32,
    /// When.
    pub at: SystemTime,
    /// The memory limit ended it.
    pub oom_killed: bool,
    /// Why the sandbox ended, where not because its process did.
    pub failure: Option<String>,
}

impl ExitInfo {
    /// The end of a process whose VM is gone.
    pub(super) fn of_vm(failure: Option<String>) -> Self {
        Self { status: KILLED, at: SystemTime::now(), oom_killed: false, failure }
    }
}

/// What is known of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessStatus {
    /// Where it stands.
    pub state: State,
    /// PID of the VMM on the host; 0 before the start of an exec.
    pub pid: u32,
    /// The bundle of its container.
    pub bundle: std::path::PathBuf,
    /// Its standard streams, as they were asked for.
    pub stdio: StdioRequest,
    /// How it ended.
    pub exit: Option<ExitInfo>,
}

/// A process.
pub(super) struct Process {
    pub(super) state: State,
    pub(super) stdio: StdioRequest,
    pub(super) streams: Streams,
    pub(super) exit: Option<ExitInfo>,
    pub(super) waiters: Vec<Reply<ExitInfo>>,
    /// Nobody will delete it.
    pub(super) left: bool,
    /// The guest has told its end; its output may still be on the way.
    pub(super) over: Over,
}

/// Whether the guest has told the end of a process, and whether its output is waited for any longer.
#[derive(Debug, Clone, Default)]
pub(super) struct Over(Arc<(AtomicBool, Notify)>);

impl Over {
    pub(super) fn set(&self) {
        self.0.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.0.load(Ordering::Relaxed)
    }

    /// Ends the waiting for outputs that have no end.
    pub(super) fn cut(&self) {
        self.0.1.notify_one();
    }

    pub(super) async fn is_cut(&self) {
        self.0.1.notified().await;
    }
}

impl Process {
    pub(super) fn new(stdio: StdioRequest, streams: Streams) -> Self {
        let (exit, waiters, over) = (None, Vec::new(), Over::default());
        Self { state: State::Created, stdio, streams, exit, waiters, left: false, over }
    }

    /// Records the end, once, and tells who waits.
    pub(super) fn end(&mut self, exit: &ExitInfo) -> bool {
        let Ok(state) = self.state.after(crate::state::Move::Exit) else { return false };
        self.state = state;
        self.exit = Some(exit.clone());
        for waiter in self.waiters.drain(..) {
            super::answer(waiter, Ok(exit.clone()));
        }
        true
    }
}
