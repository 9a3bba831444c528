//! The end of a process, of its container, of the sandbox.
//!
//! ```text
//! watcher: agent's Wait -> outputs drained -> Exited --> Core: state, waiters, event
//!             | agent gone                                  `- init: record, VM down, phases; perhaps all over
//!             `-> the VM's end is the reason, every process gets 137
//! ```

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use nacre_protocol::id::ContainerId;
use nacre_protocol::task::{EXIT_FILE, ExitRecord, OnExit, PHASES_FILE};
use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::create::tell_failure;
use super::process::{ExitInfo, Process};
use super::{Container, Core, Place, ProcessId, Request, SandboxEvent, now};
use crate::agent::{AgentError, ProcessName};
use crate::error::SandboxError;
use crate::hooks;
use crate::machine::Machine;
use crate::state::{Move, State};
use crate::stdio::Drain;

/// For a VM whose agent has gone to end by itself, with its console's last words.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Room for an exit record.
const RECORD_BYTES: u64 = 4096;

/// Shortest time between two OOM events: a guest can make as many as it likes.
const OOM_INTERVAL: Duration = Duration::from_secs(1);

/// Waits for the end of a process and of its outputs, and tells the task.
pub(super) fn watch_process(
    machine: &Machine,
    id: &ProcessId,
    process: &mut Process,
    sender: mpsc::WeakSender<Request>,
) {
    let (outputs, over) = (process.streams.take_drain(), process.over.clone());
    let (agent, vm) = (machine.agent().clone(), machine.vm().killer());
    let name = ProcessName::from(id);
    tokio::spawn(async move {
        let exit = match agent.wait(&name).await {
            Ok(exit) => {
                ExitInfo { status: exit.status, at: exit.at, oom_killed: exit.oom_killed, failure: None }
            }
            Err(AgentError::Refused { message, .. }) if !name.exec.is_empty() => {
                ExitInfo::of_vm(Some(message))
            }
            Err(error) => {
                // An agent that is not there any more, or lies: there is no use in the VM.
                if tokio::time::timeout(END_TIMEOUT, vm.ended()).await.is_err() {
                    warn!(error = &error as &dyn std::error::Error, "killing the VM");
                    vm.kill();
                }
                ExitInfo::of_vm(Some(vm.ended().await.to_string()))
            }
        };
        over.set();
        let outputs = outputs.wait(over.is_cut()).await;
        if let Some(sender) = sender.upgrade() {
            let _ = sender.send(Request::Exited { name, exit, outputs }).await;
        }
    });
}

/// Passes the guest's OOM events on, as long as the agent tells of what there can be.
pub(super) fn watch_events(machine: &Machine, sender: mpsc::WeakSender<Request>) {
    let (agent, vm) = (machine.agent().clone(), machine.vm().killer());
    tokio::spawn(async move {
        loop {
            match agent.next_event().await {
                Ok((of, kind)) if of.parse::<ContainerId>().is_ok() && kind == "oom" => {
                    let Some(sender) = sender.upgrade() else { return };
                    let _ = sender.send(Request::Oom(of)).await;
                }
                Ok((of, kind)) => {
                    warn!(of, kind, "killing the VM: the agent tells of what it cannot have");
                    return vm.kill();
                }
                Err(error) => {
                    return debug!(error = &error as &dyn std::error::Error, "no more events");
                }
            }
            tokio::time::sleep(OOM_INTERVAL).await;
        }
    });
}

impl Core {
    /// A process ended, and so did its outputs, but for those that stalled.
    pub(super) async fn exited(&mut self, name: &ProcessName, exit: ExitInfo, outputs: Drain) {
        let id = ProcessId { container: name.container.clone(), exec: name.exec.clone() };
        let Ok(container) = self.container(&id.container) else { return };
        let pid = container.pid;
        let Ok(process) = container.process(&id) else { return };
        if !process.end(&exit) {
            return;
        }
        process.streams.keep(outputs);
        self.show();
        match &exit.failure {
            Some(failure) => {
                warn!(container = id.container, exec = id.exec, failure, "process ended with its VM")
            }
            None => info!(container = id.container, exec = id.exec, status = exit.status, "process ended"),
        }
        if id.exec.is_empty()
            && let Ok(container) = self.container(&id.container)
        {
            if let Place::First(times) = &mut container.place {
                times.ended = Some(now().0);
            }
            write_record(&container.bundle, EXIT_FILE, &exit_record(&exit));
        }
        if id.exec.is_empty() && exit.oom_killed {
            // The guest's own event comes by another way, and may be late: nobody asks for the reason after the exit.
            self.out_of_memory(id.container.clone()).await;
        }
        self.publish(SandboxEvent::Exited { process: id.clone(), pid, exit }).await;
        self.after_end(&id).await;
    }

    /// After the end of a process: what its caller would have asked for next, had it stayed.
    pub(super) async fn after_end(&mut self, id: &ProcessId) {
        if id.exec.is_empty() {
            return self.init_ended(&id.container);
        }
        let left = self.container(&id.container).and_then(|container| container.process(id));
        if left.is_ok_and(|process| process.left)
            && let Err(error) = self.delete_exec(id).await
        {
            warn!(
                exec = id.exec,
                error = &error as &dyn std::error::Error,
                "cannot forget an exec that was left"
            );
        }
    }

    /// After the first container's end the VM has nothing left to do, unless a reader is still behind with the output.
    fn init_ended(&mut self, id: &str) {
        let Some(container) = self.containers.get(id).filter(|found| found.is_first()) else { return };
        if container.on_exit != OnExit::Wait {
            self.closed = true;
        } else if !container.init.streams.has_outputs() {
            self.begin_take_down();
        }
    }

    /// Of a container that is not there (any more) nobody needs to hear, nor twice of one that has ended.
    pub(super) async fn out_of_memory(&mut self, container: String) {
        let Some(found) = self.containers.get_mut(&container) else { return };
        if found.init.state == State::Stopped && found.oom_told {
            return;
        }
        found.oom_told = true;
        self.publish(SandboxEvent::Oom { container }).await;
    }

    /// Forgets a process. Deleting a container that never started ends it first.
    pub(super) async fn delete(&mut self, id: &ProcessId) -> Result<(u32, ExitInfo), SandboxError> {
        if id.exec.is_empty() { self.delete_container(id).await } else { self.delete_exec(id).await }
    }

    async fn delete_container(&mut self, id: &ProcessId) -> Result<(u32, ExitInfo), SandboxError> {
        let container = self.container(&id.container)?;
        if !container.is_first() {
            return self.leave_pod(id).await;
        }
        container.init.state.after(Move::Delete)?;
        self.take_down().await;
        self.first = None;
        self.strike_out(id).await
    }

    /// Takes a container that is gone out of the books, and tells of it.
    pub(super) async fn strike_out(&mut self, id: &ProcessId) -> Result<(u32, ExitInfo), SandboxError> {
        let Some(mut container) = self.containers.remove(&id.container) else {
            return Err(super::no_container(&id.container));
        };
        let never_started = ExitInfo::of_vm(None);
        container.init.end(&never_started);
        for process in container.execs.values_mut() {
            process.end(&never_started);
        }
        let exit = container.init.exit.take().unwrap_or(never_started);
        let pid = container.pid;
        container.init.streams.finish().await;
        let state = container.hooks.state(&id.container, "stopped", pid, &container.bundle);
        tell_failure(hooks::run(&container.hooks.poststop, &state).await);
        info!(container = id.container, status = exit.status, "container deleted");
        self.publish(SandboxEvent::Deleted { process: id.clone(), pid, exit: exit.clone() }).await;
        Ok((pid, exit))
    }

    async fn delete_exec(&mut self, id: &ProcessId) -> Result<(u32, ExitInfo), SandboxError> {
        let container = self.container(&id.container)?;
        let pid = container.pid;
        container.process(id)?.state.after(Move::Delete)?;
        if let Some(machine) = &self.machine {
            match machine.agent().delete(&id.into()).await {
                // It may have forgotten the exec that could not be started.
                Ok(()) | Err(AgentError::Refused { .. }) => {}
                Err(error) => return machine.explained(Err(error)).await,
            }
        }
        let Some(mut process) = self.container(&id.container)?.execs.remove(&id.exec) else {
            return Err(SandboxError::NoExec(id.exec.clone()));
        };
        let never_started = ExitInfo::of_vm(None);
        process.end(&never_started);
        process.streams.finish().await;
        Ok((pid, process.exit.unwrap_or(never_started)))
    }

    /// Ends everything; what the last request could not wait for is done here.
    pub(super) async fn take_down_all(&mut self) {
        self.take_down().await;
        let exit = ExitInfo::of_vm(Some("the sandbox was shut down".to_owned()));
        while let Some((name, mut container)) = self.containers.pop_first() {
            let id = ProcessId { container: name.clone(), exec: String::new() };
            for process in container.execs.values_mut() {
                process.end(&exit);
            }
            if container.init.state != State::Stopped && container.init.end(&exit) {
                write_record(&container.bundle, EXIT_FILE, &exit_record(&exit));
                let (pid, exit) = (container.pid, exit.clone());
                self.publish(SandboxEvent::Exited { process: id, pid, exit }).await;
            }
            container.init.streams.finish().await;
            let state = container.hooks.state(&name, "stopped", container.pid, &container.bundle);
            tell_failure(hooks::run(&container.hooks.poststop, &state).await);
            if container.on_exit == OnExit::Remove
                && let Err(error) = fs::remove_dir_all(&container.bundle)
            {
                warn!(error = &error as &dyn std::error::Error, "cannot remove the bundle");
            }
        }
        self.first = None;
    }

    /// Ends the VM, undoes what it stood on, and writes down how long all of it took; in a task of its own, since a
    /// host's kernel takes its time to let go of a VM, and requests need not wait for that.
    pub(super) fn begin_take_down(&mut self) {
        let Some(machine) = self.machine.take() else { return };
        let first = self.first.as_ref().and_then(|first| self.containers.get(&first.id));
        let times = first.and_then(|container| match &container.place {
            Place::First(times) => Some((container.bundle.clone(), times.clone())),
            Place::Joined(_) => None,
        });
        self.ending = Some(tokio::spawn(async move {
            machine.take_down().await;
            if let Some((bundle, times)) = times {
                write_record(&bundle, PHASES_FILE, &times.phases(now().0));
            }
        }));
    }

    /// The same, to its end.
    pub(super) async fn take_down(&mut self) {
        self.begin_take_down();
        if let Some(Err(error)) = match self.ending.take() {
            Some(ending) => Some(ending.await),
            None => None,
        } {
            warn!(error = &error as &dyn std::error::Error, "the VM was not taken down whole");
        }
    }
}

impl Container {
    fn is_first(&self) -> bool {
        matches!(self.place, Place::First(_))
    }
}

fn exit_record(exit: &ExitInfo) -> ExitRecord {
    let since = exit.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    ExitRecord {
        exit_status: exit.status,
        exited_at_ns: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        oom_killed: exit.oom_killed,
        failure: exit.failure.clone(),
    }
}

/// Takes room on the disk for the exit record, while there is some: how a container ended must not be lost to a log
/// that has filled the disk.
pub(super) fn reserve_exit_record(bundle: &Path) {
    let path = new_name(bundle, EXIT_FILE);
    let reserved = fs::File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, RECORD_BYTES)?));
    if let Err(error) = reserved {
        debug!(path = %path.display(), error = &error as &dyn std::error::Error, "no room reserved");
    }
}

fn new_name(bundle: &Path, name: &str) -> PathBuf {
    bundle.join(format!("{name}.new"))
}

/// A file in the bundle, whole or not at all. Its absence is told in the log: nothing else depends on it.
fn write_record(bundle: &Path, name: &str, value: &impl Serialize) {
    let (path, new) = (bundle.join(name), new_name(bundle, name));
    let write = |text: Vec<u8>| {
        // Not truncated first: that would give reserved room away.
        let mut file = fs::File::options().write(true).create(true).truncate(false).open(&new)?;
        file.write_all(&text)?;
        file.set_len(text.len() as u64)
    };
    let written = serde_json::to_vec(value)
        .map_err(std::io::Error::from)
        .and_then(write)
        .and_then(|()| fs::rename(&new, &path));
    if let Err(error) = written {
        warn!(path = %path.display(), error = &error as &dyn std::error::Error, "cannot write");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_record_takes_the_room_that_was_reserved_for_it() {
        let bundle = tempfile::tempdir().unwrap();
        reserve_exit_record(bundle.path());
        assert!(!bundle.path().join(EXIT_FILE).exists());
        assert_eq!(fs::metadata(new_name(bundle.path(), EXIT_FILE)).unwrap().len(), RECORD_BYTES);
        let exit = ExitRecord { exit_status: 9, exited_at_ns: 1, oom_killed: false, failure: None };
        write_record(bundle.path(), EXIT_FILE, &exit);
        let text = fs::read(bundle.path().join(EXIT_FILE)).unwrap();
        assert_eq!(serde_json::from_slice::<ExitRecord>(&text).unwrap(), exit);
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1);
    }
}
