//! The reaper: PID 1 collects every process that nobody else waits for.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::yield_now;

use super::children::Children;

/// Processes reaped before other tasks get their turn: a container may end thousands at once.
const BATCH: usize = 32;

/// Reaps on each SIGCHLD, for ever.
///
/// # Errors
/// Where the signal handler cannot be set.
pub async fn reap_for_ever(children: Arc<Children>) -> io::Result<()> {
    let mut child_ended = signal(SignalKind::child())?;
    loop {
        // One signal may stand for many processes, and some ended before the handler was there.
        while !children.reap(BATCH) {
            yield_now().await;
        }
        // The stream ends only with the runtime.
        if child_ended.recv().await.is_none() {
            return Ok(());
        }
    }
}
