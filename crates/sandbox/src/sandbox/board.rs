//! Where the task shows the state of its processes, to be read without asking it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Container;
use super::process::{Process, ProcessId, ProcessStatus};
use crate::error::SandboxError;
use crate::state::State;
use crate::text::harmless;
use crate::vm::Killer;

/// The state of the container's processes; by exec id, init's is empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Board(Arc<Mutex<Option<Shown>>>);

#[derive(Debug)]
struct Shown {
    container: String,
    vm: Option<Killer>,
    processes: BTreeMap<String, ProcessStatus>,
}

impl Board {
    /// Shows a container, or that there is none.
    pub(super) fn show(&self, container: Option<&Container>) {
        let shown = container.map(|container| {
            let init = (String::new(), status(container, &container.init, container.pid));
            let exec = |(id, process): (&String, &Process)| {
                let pid = if process.state == State::Created { 0 } else { container.pid };
                (id.clone(), status(container, process, pid))
            };
            let processes = std::iter::once(init).chain(container.execs.iter().map(exec)).collect();
            let vm = container.machine.as_ref().map(|machine| machine.vm().killer());
            Shown { container: container.id.clone(), vm, processes }
        });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    /// The container that there is.
    pub(super) fn container(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|shown| shown.container.clone())
    }

    /// Ends the VM of a container whose init has not ended.
    pub(super) fn kill_unless_stopped(&self, container: &str) {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(shown) = shown.as_ref().filter(|shown| shown.container == container) else { return };
        let stopped = shown.processes.get("").is_some_and(|init| init.state == State::Stopped);
        if let (false, Some(vm)) = (stopped, &shown.vm) {
            tracing::warn!(container, "killing the VM: its guest does not end the container");
            vm.kill();
        }
    }

    /// What is shown of a process.
    pub(super) fn read(&self, id: &ProcessId) -> Result<ProcessStatus, SandboxError> {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = shown.as_ref().filter(|shown| shown.container == id.container);
        let shown = shown.ok_or_else(|| SandboxError::NoContainer(harmless(&id.container, 128)))?;
        let found = shown.processes.get(&id.exec).cloned();
        found.ok_or_else(|| SandboxError::NoExec(harmless(&id.exec, 128)))
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
