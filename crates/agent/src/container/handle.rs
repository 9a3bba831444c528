//! A container that exists: what exec, signals and removal need of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nacre_protocol::id::ContainerId;

use super::cgroup::{Cgroup, CgroupError};
use super::rootfs::{RootfsError, Teardown};
use super::seccomp::Filter;
use super::tracers::ProcessNamespaceId;
use crate::process::Child;

/// How long a killed init may take to end.
const KILL: Duration = Duration::from_secs(10);

/// A container that could not be taken down whole.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Its init does not die.
    #[error("init of container {0} does not end")]
    Init(ContainerId),
    /// Its cgroup.
    #[error("cgroup")]
    Cgroup(#[from] CgroupError),
    /// Its root file system.
    #[error("root file system")]
    Rootfs(#[from] RootfsError),
}

/// A container.
#[derive(Debug)]
pub struct Container {
    id: ContainerId,
    parts: Parts,
    init: Child,
    namespaces: Namespaces,
    filter: Option<Filter>,
    personality: Option<u32>,
}

/// Where its processes are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Namespaces {
    /// CLONE_NEW* of those that are not the agent's.
    pub(super) kinds: u64,
    pub(super) processes: ProcessNamespaceId,
}

impl Container {
    pub(super) fn new(
        id: ContainerId,
        parts: Parts,
        init: Child,
        namespaces: Namespaces,
        filter: Option<Filter>,
        personality: Option<u32>,
    ) -> Self {
        Self { id, parts, init, namespaces, filter, personality }
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.parts.cgroup
    }

    /// Kills what is left of it and takes its cgroup and root file system down. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`RemoveError`]; a later call tries the rest again.
    pub fn remove(&self) -> Result<(), RemoveError> {
        if self.init.exit().is_none() && !self.init.kill_and_wait(KILL) {
            return Err(RemoveError::Init(self.id.clone()));
        }
        self.parts.remove()
    }

    pub(super) fn init(&self) -> &Child {
        &self.init
    }

    pub(super) fn shared_cgroup(&self) -> &Arc<Cgroup> {
        &self.parts.cgroup
    }

    pub(super) fn namespaces(&self) -> Namespaces {
        self.namespaces
    }

    pub(super) fn filter(&self) -> Option<&Filter> {
        self.filter.as_ref()
    }

    pub(super) fn personality(&self) -> Option<u32> {
        self.personality
    }
}

/// What stays in the guest until it is taken down.
#[derive(Debug)]
pub(super) struct Parts {
    cgroup: Arc<Cgroup>,
    rootfs: Mutex<Option<Teardown>>,
}

impl Parts {
    fn remove(&self) -> Result<(), RemoveError> {
        // No process, no mount namespace; no mount namespace, no mount; then the partitions are free.
        self.cgroup.remove()?;
        let mut rootfs = self.rootfs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(teardown) = rootfs.as_mut() {
            teardown.run()?;
        }
        *rootfs = None;
        Ok(())
    }
}

/// Takes back what a failed creation has made, in reverse order.
#[derive(Debug)]
pub(super) struct Undo {
    parts: Option<Parts>,
}

impl Undo {
    pub(super) fn new(cgroup: Cgroup, rootfs: Teardown) -> Self {
        Self { parts: Some(Parts { cgroup: Arc::new(cgroup), rootfs: Mutex::new(Some(rootfs)) }) }
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.parts.as_ref().expect("parts are taken only by disarm, which takes self").cgroup
    }

    pub(super) fn rootfs(&mut self) -> &mut Teardown {
        let parts = self.parts.as_mut().expect("parts are taken only by disarm, which takes self");
        let rootfs = parts.rootfs.get_mut().unwrap_or_else(PoisonError::into_inner);
        rootfs.as_mut().expect("a teardown is taken only by remove, which drops the parts")
    }

    /// Nothing is to be undone any more.
    pub(super) fn disarm(mut self) -> Parts {
        self.parts.take().expect("parts are taken only by disarm, which takes self")
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take()
            && let Err(error) = parts.remove()
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "a failed creation could not be undone");
        }
    }
}
