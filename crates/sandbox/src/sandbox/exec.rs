//! What may be asked of a container while it runs.

use std::collections::btree_map::Entry;

use nacre_protocol::id::ContainerId;
use nacre_protocol::task::Leave;
use tracing::info;

use super::requests::SIGKILL;
use super::{Core, ExitInfo, Place, Process, ProcessId, Reply, SandboxEvent, answer};
use crate::agent::{Reach, StatsReply};
use crate::error::SandboxError;
use crate::plan::resources::{Resources, cpu_max};
use crate::state::{Move, State};
use crate::stdio::{self, LogSource, StdioRequest};

impl Core {
    /// Prepares a further process.
    pub(super) async fn exec(
        &mut self,
        id: &ProcessId,
        process_json: Vec<u8>,
        stdio: StdioRequest,
    ) -> Result<(), SandboxError> {
        id.exec.parse::<ContainerId>()?;
        let namespace = self.settings.namespace.clone();
        let (container, machine) = self.running(&id.container)?;
        if container.execs.contains_key(&id.exec) {
            return Err(SandboxError::HasExec(id.exec.clone()));
        }
        if container.init.state != State::Running {
            return Err(SandboxError::NotRunning(id.container.clone()));
        }
        let source = LogSource { namespace: namespace.as_str(), container: &id.container };
        let opened = stdio::open(&stdio, source).await?;
        let names = opened.for_agent(console_size(&process_json));
        let streams = opened.connect(&machine.dialer());
        let created = machine.agent().create_exec(&id.into(), process_json, names).await;
        machine.explained(created).await?;
        match container.execs.entry(id.exec.clone()) {
            Entry::Vacant(place) => drop(place.insert(Process::new(stdio, streams))),
            Entry::Occupied(_) => return Err(SandboxError::HasExec(id.exec.clone())),
        }
        self.publish(SandboxEvent::ExecAdded { process: id.clone() }).await;
        Ok(())
    }

    /// Sends a signal. A guest that does not even take SIGKILL for its init loses its VM.
    pub(super) async fn signal(
        &mut self,
        id: &ProcessId,
        signal: u32,
        reach: Reach,
    ) -> Result<(), SandboxError> {
        let state = self.container(&id.container)?.process(id)?.state;
        if !state.takes_signals() {
            return Err(SandboxError::Finished);
        }
        if state == State::Created && !id.exec.is_empty() {
            return Err(SandboxError::NotRunning(id.exec.clone()));
        }
        let (_, machine) = self.running(&id.container)?;
        let sent = machine.agent().signal(&id.into(), signal, reach).await;
        if let Err(error) = &sent
            && signal == SIGKILL
            && id.exec.is_empty()
            && !matches!(error, crate::agent::AgentError::Refused { .. })
        {
            info!(container = id.container, "the agent does not answer: the VM is killed instead");
            machine.vm().kill();
            return Ok(());
        }
        machine.explained(sent).await
    }

    /// Answers at once when the process has ended, else when it does.
    pub(super) fn wait(&mut self, id: &ProcessId, reply: Reply<ExitInfo>) {
        let process = match self.container(&id.container).and_then(|container| container.process(id)) {
            Ok(process) => process,
            Err(error) => return answer(reply, Err(error)),
        };
        match &process.exit {
            Some(exit) => answer(reply, Ok(exit.clone())),
            None => {
                // Callers that went away leave room for others.
                process.waiters.retain(|waiter| !waiter.is_closed());
                process.waiters.push(reply);
            }
        }
    }

    pub(super) async fn resize(
        &mut self,
        id: &ProcessId,
        columns: u32,
        rows: u32,
    ) -> Result<(), SandboxError> {
        if !self.container(&id.container)?.process(id)?.state.takes_signals() {
            return Err(SandboxError::Finished);
        }
        let (_, machine) = self.running(&id.container)?;
        machine.explained(machine.agent().resize(&id.into(), columns, rows).await).await
    }

    pub(super) fn close_stdin(&mut self, id: &ProcessId) -> Result<(), SandboxError> {
        self.container(&id.container)?.process(id)?.streams.close_stdin();
        Ok(())
    }

    /// Whoever made the process goes away: what waited for that caller happens by itself from now on.
    pub(super) async fn leave(&mut self, container: &str, leave: &Leave) -> Result<(), SandboxError> {
        let id = ProcessId { container: container.to_owned(), exec: leave.exec_id.clone() };
        let container = self.container(container)?;
        let process = container.process(&id)?;
        process.streams.redirect(&leave.output)?;
        process.left = true;
        let ended = process.state == State::Stopped;
        if id.exec.is_empty() {
            container.on_exit = leave.on_exit;
        }
        info!(container = id.container, exec = id.exec, "process was left");
        if ended {
            self.after_end(&id).await;
        }
        Ok(())
    }

    pub(super) async fn pause(&mut self, id: &str) -> Result<(), SandboxError> {
        let (container, machine) = self.running(id)?;
        let state = container.init.state.after(Move::Pause)?;
        machine.explained(machine.agent().freeze(id).await).await?;
        container.init.state = state;
        self.publish(SandboxEvent::Paused { container: id.to_owned() }).await;
        Ok(())
    }

    pub(super) async fn resume(&mut self, id: &str) -> Result<(), SandboxError> {
        let (container, machine) = self.running(id)?;
        let state = container.init.state.after(Move::Resume)?;
        machine.explained(machine.agent().thaw(id).await).await?;
        container.init.state = state;
        self.publish(SandboxEvent::Resumed { container: id.to_owned() }).await;
        Ok(())
    }

    /// Changes the limits in the guest, and the host's CPU bandwidth with them.
    pub(super) async fn update(&mut self, id: &str, resources_json: Vec<u8>) -> Result<(), SandboxError> {
        let resources: Resources =
            serde_json::from_slice(&resources_json).map_err(SandboxError::Resources)?;
        let guest_mib = self.first.as_ref().map_or(u32::MAX, |first| first.memory_mib);
        let (container, machine) = self.running(id)?;
        if let Some(limit) = resources.memory.limit.and_then(|limit| u64::try_from(limit).ok()) {
            let wanted_mib = limit >> 20;
            if wanted_mib > u64::from(guest_mib) {
                return Err(SandboxError::MemoryAboveGuest { wanted_mib, guest_mib });
            }
        }
        let updated = machine.agent().update(id, without_devices(&resources_json)?).await;
        machine.explained(updated).await?;
        if let (Place::First(_), Some(cgroup)) = (&container.place, machine.cgroup())
            && resources.cpu.quota.is_some()
        {
            cgroup.limit_cpu(cpu_max(&resources))?;
        }
        Ok(())
    }

    pub(super) async fn stats(&mut self, id: &str) -> Result<StatsReply, SandboxError> {
        let (_, machine) = self.running(id)?;
        machine.explained(machine.agent().stats(id).await).await
    }

    /// The guest's own PIDs mean nothing on the host.
    pub(super) fn pids(&mut self, id: &str) -> Result<Vec<u32>, SandboxError> {
        self.container(id)?;
        Ok(self.machine.iter().map(|machine| machine.vm().pid()).collect())
    }
}

/// Limits without rules for devices, which stay as they were: containerd repeats those of the creation, and the numbers of
/// block devices among them are the host's.
fn without_devices(resources_json: &[u8]) -> Result<Vec<u8>, SandboxError> {
    let mut resources: serde_json::Value =
        serde_json::from_slice(resources_json).map_err(SandboxError::Resources)?;
    if let Some(resources) = resources.as_object_mut() {
        resources.remove("devices");
    }
    serde_json::to_vec(&resources).map_err(SandboxError::Resources)
}

/// Columns and rows of an OCI process object, where it has them.
fn console_size(process_json: &[u8]) -> Option<(u32, u32)> {
    let process: serde_json::Value = serde_json::from_slice(process_json).ok()?;
    let size = |key: &str| u32::try_from(process.get("consoleSize")?.get(key)?.as_u64()?).ok();
    Some((size("width")?, size("height")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f12_update_has_no_rules_for_devices() {
        let given = br#"{"cpu":{"quota":1},"devices":[{"allow":true,"type":"b","major":254,"minor":0}]}"#;
        assert_eq!(without_devices(given).unwrap(), br#"{"cpu":{"quota":1}}"#);
        assert!(without_devices(b"{").is_err());
    }
}
