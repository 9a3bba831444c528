//! All that the RPC methods share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::container::Guest;
use crate::machine::boottime_us;
use crate::machine::network::Birthplace;
use crate::process::{Events, Table};
use crate::stream::Unclaimed;

/// The agent's state: one for each guest.
#[derive(Debug)]
pub struct Agent {
    pub(crate) guest: Guest,
    pub(crate) table: Table,
    pub(crate) events: Arc<Events>,
    pub(crate) streams: Arc<Unclaimed>,
    /// The host has asked for the end.
    pub(crate) leaving: Notify,
    init_started_us: u64,
    ready_us: AtomicU64,
    birthplace: Mutex<Option<Birthplace>>,
}

impl Agent {
    /// An agent without containers.
    pub fn new(guest: Guest, streams: Arc<Unclaimed>, init_started_us: u64) -> Self {
        Self {
            guest,
            table: Table::default(),
            events: Arc::default(),
            streams,
            leaving: Notify::new(),
            init_started_us,
            ready_us: AtomicU64::new(0),
            birthplace: Mutex::default(),
        }
    }

    /// Notes that the control connection is up.
    pub fn ready(&self) {
        self.ready_us.store(boottime_us(), Ordering::Relaxed);
    }

    /// Where links are found first, where that is not the containers' network namespace.
    pub(crate) fn birthplace(&self) -> MutexGuard<'_, Option<Birthplace>> {
        self.birthplace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When PID 1 started and when it was ready, on CLOCK_BOOTTIME in microseconds.
    pub(crate) fn boot_times_us(&self) -> (u64, u64) {
        (self.init_started_us, self.ready_us.load(Ordering::Relaxed))
    }
}

/// How long the end of all containers' processes, and then of writing back, is waited for when the guest ends.
const END_TIMEOUT: Duration = Duration::from_secs(5);

impl Agent {
    /// Ends every process of every container, writes back what is dirty, and lets [`serve`](crate::server::serve)
    /// return.
    pub(crate) async fn end(&self) {
        let instances = self.table.all();
        for instance in &instances {
            if let Err(error) = instance.container().cgroup().kill_all() {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "cannot kill a container's processes");
            }
        }
        // A process in an uninterruptible wait must not keep the guest.
        let all_ended = async {
            for instance in &instances {
                instance.init().wait().await;
            }
        };
        let _ = timeout(END_TIMEOUT, all_ended).await;
        let _ = timeout(END_TIMEOUT, spawn_blocking(rustix::fs::sync)).await;
        self.leaving.notify_one();
    }
}
