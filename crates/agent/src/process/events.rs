//! Events for the host: each container's out-of-memory kills.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nacre_protocol::id::ContainerId;
use tokio::sync::Notify;

/// Out-of-memory events that the host has not taken yet, at most one a container: one that dies of memory
/// thousands of times a second costs one entry.
#[derive(Debug, Default)]
pub struct Events {
    waiting: Mutex<VecDeque<ContainerId>>,
    arrived: Notify,
}

impl Events {
    /// Tells that the memory limit of `container` has killed a process.
    pub fn out_of_memory(&self, container: &ContainerId) {
        let mut waiting = self.lock();
        if !waiting.contains(container) {
            waiting.push_back(container.clone());
            self.arrived.notify_one();
        }
    }

    /// The next container that ran out of memory. A call that is given up loses none.
    pub async fn next(&self) -> ContainerId {
        loop {
            let arrived = self.arrived.notified();
            if let Some(container) = self.lock().pop_front() {
                return container;
            }
            arrived.await;
        }
    }

    /// Drops what a deleted container has left.
    pub fn forget(&self, container: &ContainerId) {
        self.lock().retain(|other| other != container);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<ContainerId>> {
        // Nothing panics with the lock held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
