//! One process that the host made: a container's init, or an exec.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::Signal;
use tokio::sync::watch;

use super::children::{Child, Exit};
use super::error::ProcessError;
use crate::container::{Container, Starter};
use crate::stream::Attached;

/// How a process ended, as its owner is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Status and time.
    pub exit: Exit,
    /// The memory limit of its container had killed a process by then.
    pub oom_killed: bool,
}

/// Which process of its container it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Its first: the container ends with it.
    Init,
    /// A further one.
    Exec,
}

/// A process in the table.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Until it is started.
    starter: Mutex<Option<Starter>>,
    streams: Attached,
    ended: watch::Receiver<Option<Ended>>,
}

impl Process {
    /// Puts a created process together, and starts the task that learns its end.
    pub fn new(
        child: Child,
        starter: Starter,
        streams: Attached,
        container: Arc<Container>,
        role: Role,
    ) -> Self {
        let (sender, ended) = watch::channel(None);
        let waiting = child.clone();
        tokio::spawn(async move {
            let exit = waiting.wait().await;
            if role == Role::Init
                && let Err(error) = container.cgroup().kill_all()
            {
                // Its pid namespace took the others along, unless it shares one.
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "cannot kill what a container's init left behind");
            }
            let oom_killed = container.cgroup().oom_kills().is_ok_and(|kills| kills > 0);
            sender.send_replace(Some(Ended { exit, oom_killed }));
        });
        Self { child, starter: Mutex::new(Some(starter)), streams, ended }
    }

    /// The child that it is.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Its standard streams.
    pub fn streams(&self) -> &Attached {
        &self.streams
    }

    /// What lets it exec its program; given out once.
    ///
    /// # Errors
    /// [`ProcessError::AlreadyStarted`].
    pub fn take_starter(&self) -> Result<Starter, ProcessError> {
        self.starter().take().ok_or(ProcessError::AlreadyStarted)
    }

    /// How it ended, where it has.
    pub fn ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// Waits for its end. Any number of callers, before or after.
    pub async fn wait(&self) -> Ended {
        let mut ended = self.ended.clone();
        let value = ended.wait_for(Option::is_some).await.map(|ended| *ended);
        match value {
            Ok(Some(ended)) => ended,
            // The task is gone, and with it the runtime.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Sends a signal to this process alone.
    ///
    /// # Errors
    /// [`ProcessError::Finished`]. The pidfd is of a child and the number was checked: ESRCH is the only refusal.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        self.child.signal(signal).map_err(|_| ProcessError::Finished)
    }

    /// Makes sure that it has ended, for its deletion: one that was never started is killed, a running one is not.
    ///
    /// # Errors
    /// [`ProcessError::StillRunning`].
    pub async fn end_unstarted(&self) -> Result<Ended, ProcessError> {
        if let Some(ended) = self.ended() {
            return Ok(ended);
        }
        let Some(starter) = self.starter().take() else { return Err(ProcessError::StillRunning) };
        // Before its starter goes, without which the child would exit by itself with another status.
        let _ = self.child.signal(Signal::KILL);
        drop(starter);
        Ok(self.wait().await)
    }

    fn starter(&self) -> MutexGuard<'_, Option<Starter>> {
        // Nothing panics with the lock held.
        self.starter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
