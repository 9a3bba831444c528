//! Containers that could attach to a process which is only about to become another one's, and keeping them still until it has.
//!
//! A child sets itself up with the rights of the guest's root. Where it is in a PID namespace that others are in, a process with
//! CAP_SYS_PTRACE over it finds it there and could make those rights its own (C15): so from before the fork until the
//! child is confined, which is before it waits for its start, the cgroups of such containers are frozen. No others are: root with
//! CAP_SYS_ADMIN and without a user namespace is the guest's root anyway, and who is in a user namespace has no capability over the child.

use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{fstat, stat};
use rustix::thread::CapabilitySet;

use super::cgroup::{Cgroup, CgroupError, Hold};
use super::plan::ProcessPlan;

/// How long processes may take to stop. One that waits for a file system, or for a page fault of another's making, does not: then the
/// child is not made.
const PATIENCE: Duration = Duration::from_secs(5);

/// A namespace, by device and inode of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessNamespaceId(u64, u64);

impl ProcessNamespaceId {
    /// That of this file.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub(super) fn of_file(file: impl AsFd) -> rustix::io::Result<Self> {
        fstat(file).map(|stat| Self(stat.st_dev, stat.st_ino))
    }

    /// The one that a process is in.
    ///
    /// # Errors
    /// Those of stat(2).
    pub(super) fn of_process(pid: u32) -> rustix::io::Result<Self> {
        stat(format!("/proc/{pid}/ns/pid")).map(|stat| Self(stat.st_dev, stat.st_ino))
    }
}

/// Whether a process, in these namespaces (CLONE_NEW*), is one of those that the module is about.
pub(super) fn can_trace(process: &ProcessPlan, namespaces: u64) -> bool {
    let has_user = namespaces & libc::CLONE_NEWUSER as u64 != 0;
    !has_user && process.capabilities.any_of(CapabilitySet::SYS_PTRACE) && !process.is_guests_root()
}

/// All of the guest.
#[derive(Debug, Default)]
pub struct Tracers {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tracers: Vec<(ProcessNamespaceId, Weak<Cgroup>)>,
    /// Where children are being made now.
    held: Vec<ProcessNamespaceId>,
}

impl Tracers {
    /// Adds a container whose process does not run yet. Waits until children that were being made without its being known of are
    /// confined.
    pub(super) fn add(&self, namespace: ProcessNamespaceId, cgroup: &Arc<Cgroup>) {
        let mut state = self.state();
        while state.held.contains(&namespace) {
            state = self.released.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.tracers.retain(|(_, known)| known.strong_count() > 0);
        let known = state.tracers.iter().any(|(_, known)| known.as_ptr() == Arc::as_ptr(cgroup));
        if !known {
            state.tracers.push((namespace, Arc::downgrade(cgroup)));
        }
    }

    /// Keeps all of a namespace still for as long as the value lives.
    ///
    /// # Errors
    /// [`CgroupError::Held`] where a process does not stop: none is kept then.
    pub(super) fn hold(&self, namespace: ProcessNamespaceId) -> Result<Held<'_>, CgroupError> {
        let mut state = self.state();
        state.held.push(namespace);
        let there = state.tracers.iter().filter(|(other, _)| *other == namespace);
        let there: Vec<Arc<Cgroup>> = there.filter_map(|(_, cgroup)| cgroup.upgrade()).collect();
        drop(state);
        let mut held = Held { tracers: self, namespace, holds: Vec::new() };
        for cgroup in there {
            held.holds.push(Hold::begin(cgroup)?);
        }
        // One deadline for all: they stop at the same time.
        let deadline = Instant::now() + PATIENCE;
        held.holds.iter().try_for_each(|hold| hold.wait(deadline))?;
        Ok(held)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Containers that stand still.
#[derive(Debug)]
pub(super) struct Held<'a> {
    tracers: &'a Tracers,
    namespace: ProcessNamespaceId,
    holds: Vec<Hold>,
}

impl Held<'_> {
    /// Whether this is the cgroup of one of them: a child that is born in it would stand still too.
    pub(super) fn has(&self, cgroup: &Cgroup) -> bool {
        self.holds.iter().any(|hold| std::ptr::eq(hold.cgroup(), cgroup))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.holds.clear();
        let mut state = self.tracers.state();
        if let Some(at) = state.held.iter().position(|held| *held == self.namespace) {
            state.held.swap_remove(at);
        }
        self.tracers.released.notify_all();
    }
}
