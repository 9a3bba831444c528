//! Where the task shows the state of its processes, to be read without asking it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pod::{Pod, PodStatus};
use super::process::{Over, Process, ProcessId, ProcessStatus};
use super::{Container, First};
use crate::error::SandboxError;
use crate::machine::Machine;
use crate::state::State;
use crate::text::harmless;
use crate::vm::Killer;

/// The state of every container's processes.
#[derive(Debug, Clone, Default)]
pub(super) struct Board(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    /// The first container.
    first: Option<String>,
    vm: Option<Killer>,
    /// By container and exec; init's exec id is empty.
    processes: BTreeMap<String, BTreeMap<String, ProcessStatus>>,
    /// By container, of its init.
    over: BTreeMap<String, Over>,
    pod: Option<PodStatus>,
}

impl Board {
    /// Shows what there is.
    pub(super) fn show(
        &self,
        first: Option<&First>,
        machine: Option<&Machine>,
        containers: &BTreeMap<String, Container>,
        pod: Option<&Pod>,
    ) {
        let processes = |(id, container): (&String, &Container)| {
            let init = (String::new(), status(container, &container.init, container.pid));
            let exec = |(id, process): (&String, &Process)| {
                let pid = if process.state == State::Created { 0 } else { container.pid };
                (id.clone(), status(container, process, pid))
            };
            (id.clone(), std::iter::once(init).chain(container.execs.iter().map(exec)).collect())
        };
        let shown = Shown {
            first: first.map(|first| first.id.clone()),
            vm: machine.map(|machine| machine.vm().killer()),
            processes: containers.iter().map(processes).collect(),
            over: containers
                .iter()
                .map(|(id, container)| (id.clone(), container.init.over.clone()))
                .collect(),
            pod: pod.map(|pod| PodStatus {
                pid: pod.pid,
                created_at: pod.created_at,
                exit: pod.exit.clone(),
            }),
        };
        *self.shown() = shown;
    }

    /// The first container.
    pub(super) fn first(&self) -> Option<String> {
        self.shown().first.clone()
    }

    /// Ends the VM of a container whose init has not ended, or of a pod that has not. Of an init whose end the guest has told, the output
    /// is not waited for any more, unless all of it has come and only its reader is slow.
    pub(super) fn kill_unless_stopped(&self, container: &str) {
        let shown = self.shown();
        let init = shown.processes.get(container).and_then(|processes| processes.get(""));
        let lives = match init {
            Some(init) => init.state != State::Stopped,
            None => shown.first.as_deref() == Some(container),
        };
        if !lives {
            return;
        }
        if let Some(over) = shown.over.get(container).filter(|over| over.is_set()) {
            return over.cut();
        }
        if let Some(vm) = &shown.vm {
            tracing::warn!(container, "killing the VM: its guest does not end the container");
            vm.kill();
        }
    }

    /// What is shown of the pod.
    pub(super) fn pod(&self) -> Option<PodStatus> {
        self.shown().pod.clone()
    }

    /// What is shown of a process.
    pub(super) fn read(&self, id: &ProcessId) -> Result<ProcessStatus, SandboxError> {
        let shown = self.shown();
        let container = shown.processes.get(&id.container);
        let container = container.ok_or_else(|| super::no_container(&id.container))?;
        let found = container.get(&id.exec).cloned();
        found.ok_or_else(|| SandboxError::NoExec(harmless(&id.exec, 128)))
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn status(container: &Container, process: &Process, pid: u32) -> ProcessStatus {
    ProcessStatus {
        state: process.state,
        pid,
        bundle: container.bundle.clone(),
        stdio: process.stdio.clone(),
        exit: process.exit.clone(),
    }
}
