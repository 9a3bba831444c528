//! The wait for a process's outputs before its exit is told: to their end, or to where waiting is of no use any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Progress;

/// How long nothing may move before an exit is reported although a stream has not ended.
pub const STALL: Duration = Duration::from_secs(2);

/// An output that is copied.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) task: JoinHandle<()>,
    /// The guest's stream has ended: what is left is in the reader's hands.
    pub(super) ended: Arc<AtomicBool>,
    /// Ready when there is nothing more to wait for: all is taken, or the reader has left.
    pub(super) done: oneshot::Receiver<()>,
}

/// What a task tells of its output.
pub(super) struct Told {
    pub(super) ended: Arc<AtomicBool>,
    pub(super) done: oneshot::Sender<()>,
}

/// Outputs that run until their end.
#[derive(Debug, Default)]
pub struct Drain {
    pub(super) outputs: Vec<Running>,
    pub(super) held: Vec<Running>,
    pub(super) progress: Arc<Progress>,
}

impl Drain {
    /// Waits for the end of every output, as long as something moves; returns the outputs that still run, and those whose
    /// reader has left. After `cut`, those are given up that the guest has not ended.
    pub async fn wait(mut self, cut: impl Future<Output = ()>) -> Self {
        let mut cut = std::pin::pin!(cut);
        let (mut seen, mut is_cut) = (self.progress.bytes(), false);
        while let Some(output) = self.outputs.last_mut() {
            let done = tokio::select! {
                done = tokio::time::timeout(STALL, &mut output.done) => done,
                () = &mut cut, if !is_cut => {
                    is_cut = true;
                    let endless = self.outputs.extract_if(.., |output| !output.ended.load(Ordering::Relaxed));
                    endless.for_each(|output| output.task.abort());
                    continue;
                }
            };
            match done {
                Ok(Ok(())) => self.held.extend(self.outputs.pop()),
                // The task has ended.
                Ok(Err(_)) => drop(self.outputs.pop()),
                Err(_) if self.progress.bytes() == seen => break,
                Err(_) => seen = self.progress.bytes(),
            }
        }
        self
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.outputs.iter().chain(&self.held).for_each(|output| output.task.abort());
    }
}
