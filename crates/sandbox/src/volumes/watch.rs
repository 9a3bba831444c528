//! Noticing that a volume has changed, by inotify; where the host has no instance left, by looking every few seconds.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::sys;

/// A change of a volume is several steps; what a kubelet does takes no longer.
const QUIET: Duration = Duration::from_millis(50);

/// Rounds of [`QUIET`] after which a volume that never rests is read all the same.
const MAX_ROUNDS: u32 = 20;

/// Between two looks without inotify.
const POLL: Duration = Duration::from_secs(5);

/// Shortest time between two readings.
const PAUSE: Duration = Duration::from_millis(100);

/// Names that come and go, files that were written, modes and owners.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::ONLYDIR);

/// The watched directories of a volume.
#[derive(Debug)]
pub(super) struct Watch {
    /// None: there is no instance for it.
    inotify: Option<OwnedFd>,
}

impl Watch {
    pub(super) fn new() -> Self {
        let made = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        if let Err(error) = &made {
            debug!(%error, "a volume is looked at every few seconds: no inotify instance");
        }
        Self { inotify: made.ok() }
    }

    /// Watches a directory too; one that is watched already stays so.
    pub(super) fn add(&mut self, directory: BorrowedFd<'_>) -> io::Result<()> {
        let Some(inotify) = &self.inotify else { return Ok(()) };
        // By the descriptor: the name may mean something else by now.
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        match inotify::add_watch(inotify, path, EVENTS) {
            Ok(_) => Ok(()),
            // No room for more watches.
            Err(Errno::NOSPC | Errno::NOMEM) => {
                self.inotify = None;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns when something has changed, or may have, and it is quiet again.
    pub(super) async fn changed(&mut self) {
        sleep(PAUSE).await;
        let Some(inotify) = &self.inotify else { return sleep(POLL).await };
        let Ok(inotify) = watched(inotify) else { return sleep(POLL).await };
        if wait(&inotify).await.is_err() {
            return sleep(POLL).await;
        }
        for _ in 0..MAX_ROUNDS {
            if timeout(QUIET, wait(&inotify)).await.is_err() {
                return;
            }
        }
    }
}

/// A copy of the descriptor, for the runtime that this is called on.
fn watched(inotify: &OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    sys::watch(inotify.try_clone()?, Interest::READABLE)
}

/// Waits for events and takes them out. What they say is not of interest: all of the volume is read again.
async fn wait(inotify: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    loop {
        let mut ready = inotify.readable().await?;
        let mut any = false;
        loop {
            match rustix::io::read(inotify.get_ref(), &mut buffer) {
                Ok(_) => any = true,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        ready.clear_ready();
        if any {
            return Ok(());
        }
    }
}
