//! Direct children of the agent, registered before they can be reaped.
//!
//! PID 1 reaps orphans of every container next to its own children. An exit status must reach the right owner
//! even where a child ends before its maker has looked at its pid, or where the pid is used again at once:
//! a child is therefore made with the registry locked ([`Children::spawn`]), and the reaper takes a status
//! and its entry out of the registry under the same lock.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, pidfd_send_signal, wait};
use tokio::sync::watch;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit status; 128 + n where signal n ended it.
    pub status: u32,
    /// When it was reaped, on the guest's clock.
    pub at: SystemTime,
}

/// A process that was just made.
#[derive(Debug)]
pub struct Spawned {
    /// Its pid in the agent's pid namespace.
    pub pid: Pid,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

/// A direct child of the agent. Dropping it ends nothing: the reaper still reaps it.
#[derive(Debug, Clone)]
pub struct Child {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

/// Every direct child that has not been reaped.
#[derive(Debug, Default)]
pub struct Children {
    waiting: Mutex<HashMap<Pid, watch::Sender<Option<Exit>>>>,
}

impl Children {
    /// Runs `make`, which must fork exactly one child of this process (directly, or with CLONE_PARENT from a
    /// child), and registers it. The reaper waits meanwhile, so `make` does no more than that.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn spawn<E>(&self, make: impl FnOnce() -> Result<Spawned, E>) -> Result<Child, E> {
        let mut waiting = self.lock();
        let Spawned { pid, pidfd } = make()?;
        let (sender, exit) = watch::channel(None);
        waiting.insert(pid, sender);
        Ok(Child { pid, pidfd: Arc::new(pidfd), exit })
    }

    /// Reaps at most `limit` ended processes, whoever they belong to, and says whether none is left.
    ///
    /// Containers choose how many orphans end at once; the bound lets the caller serve others in between.
    pub fn reap(&self, limit: usize) -> bool {
        for _ in 0..limit {
            let mut waiting = self.lock();
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Err(Errno::INTR) => continue,
                // No ended child, or no child at all.
                Ok(None) | Err(_) => return true,
            };
            if let Some(sender) = waiting.remove(&pid) {
                sender.send_replace(Some(Exit { status: exit_code(status), at: SystemTime::now() }));
            }
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pid, watch::Sender<Option<Exit>>>> {
        // Nothing panics with the lock held but `make`, which leaves the map as it was.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Child {
    /// Pid in the agent's pid namespace. Signals go through the pidfd; this is for messages and replies.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The pidfd, also good for `setns`.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The exit, where it has been reaped.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits until it was reaped. Any number of callers, before or after.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        let reaped = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        match reaped {
            Ok(Some(exit)) => exit,
            // The registry is gone, and so is the agent.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Sends a signal; `Errno::SRCH` once it has ended.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2).
    pub fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        pidfd_send_signal(&*self.pidfd, signal)
    }

    /// Kills it and waits until it has ended, blocking. For undoing a creation.
    pub fn kill_and_wait(&self, timeout: Duration) -> bool {
        // ESRCH is what we want; nothing else can go wrong with SIGKILL from PID 1.
        let _ = self.signal(Signal::KILL);
        self.wait_ended(timeout)
    }

    /// Waits, blocking, until it has ended (it may still be unreaped); false on timeout.
    pub fn wait_ended(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok();
            let mut fds = [PollFd::new(&*self.pidfd, PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Err(Errno::INTR) => {}
                Ok(ready) => return ready > 0,
                Err(_) => return false,
            }
        }
    }
}

/// Exit status as a shell gives it: 128 + n for signal n.
fn exit_code(status: WaitStatus) -> u32 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.map_or(255, i32::unsigned_abs)
}
