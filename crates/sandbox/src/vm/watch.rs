//! The one task that watches a VMM: its control socket, what it and its guest print, and its end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::control::{Event, ExitReason, Failure, FromVmm, Reply};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::{Pending, VmExit, lock};
use crate::channel::Channel;
use crate::process::Child;
use crate::tail::{LogLines, TailReader};

/// The task.
pub(super) struct Watch {
    pub(super) child: Arc<Child>,
    pub(super) pidfd: AsyncFd<OwnedFd>,
    pub(super) channel: Arc<Channel>,
    pub(super) pending: Pending,
    pub(super) serial: TailReader,
    pub(super) stderr: TailReader,
    pub(super) stderr_lines: LogLines,
    pub(super) exit: watch::Sender<Option<Arc<VmExit>>>,
}

impl Watch {
    pub(super) async fn run(mut self) {
        let mut reason = None;
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                message = self.channel.receive(), if open => match message {
                    Ok(Some(FromVmm::Reply { id, result })) => self.answer(id, result),
                    Ok(Some(FromVmm::Event(Event::Exited(why)))) => reason = Some(why),
                    Ok(None) => open = false,
                    Err(error) => {
                        // It closed its end in mid-message, or talks nonsense: of no use any more.
                        tracing::warn!(error = &error as &dyn std::error::Error, "killing the VMM");
                        open = false;
                        self.child.kill();
                    }
                },
                _ = self.pidfd.readable() => break,
                _ = self.serial.read() => {}
                text = self.stderr.read() => {
                    for line in self.stderr_lines.push(&text) {
                        tracing::warn!(line, "the VMM says");
                    }
                }
            }
        }
        if open {
            // The socket has an end now that the process is gone; the time limit is for one that was handed on.
            let rest = tokio::time::timeout(Duration::from_secs(1), self.last_event()).await;
            reason = rest.ok().flatten().or(reason);
        }
        self.serial.drain();
        self.stderr.drain();
        let exit = VmExit::new(self.child.reap(), reason, &self.serial.tail, &self.stderr.tail);
        self.exit.send_replace(Some(Arc::new(exit)));
    }

    /// The event may still be in the socket when the process is gone.
    async fn last_event(&mut self) -> Option<ExitReason> {
        let mut reason = None;
        while let Ok(Some(message)) = self.channel.receive().await {
            match message {
                FromVmm::Event(Event::Exited(why)) => reason = Some(why),
                FromVmm::Reply { id, result } => self.answer(id, result),
            }
        }
        reason
    }

    /// A reply that nobody waits for is dropped.
    fn answer(&self, id: u64, result: Result<Reply, Failure>) {
        if let Some(sender) = lock(&self.pending).remove(&id) {
            let _ = sender.send(result);
        }
    }
}
