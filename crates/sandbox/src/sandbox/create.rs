//! The start of a container: plan, boot, connect, create; later, start.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use nacre_protocol::task::OnExit;
use tracing::info;

use super::exit::watch_events;
use super::{Container, Core, Process, ProcessId, SandboxEvent, exit, phases};
use crate::agent::{GuestRootfs, Layer};
use crate::error::SandboxError;
use crate::machine::{self, Machine};
use crate::plan::rootfs::ROOTFS_SHARE;
use crate::plan::{self, HostLimits, Inputs, Mount, Plan, RootfsPlan};
use crate::state::Move;
use crate::stdio::{self, LogSource, StdioRequest};
use crate::storage::ROOTFS_DISK;

/// A container to make.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CreateRequest {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Mounts of its root file system.
    pub rootfs: Vec<Mount>,
    /// Its init's standard streams.
    pub stdio: StdioRequest,
    /// What the sandbox does by itself when it has ended.
    pub on_exit: OnExit,
}

impl Core {
    /// Makes the container, up to its init's exec; the VMM's PID.
    pub(super) async fn create(&mut self, request: CreateRequest) -> Result<u32, SandboxError> {
        let requested = Instant::now();
        if let Some(container) = &self.container {
            return Err(SandboxError::HasContainer(container.id.clone()));
        }
        request.id.parse::<nacre_protocol::id::ContainerId>()?;
        let plan = self.plan(&request)?;
        let source = LogSource { namespace: self.settings.namespace.as_str(), container: &request.id };
        let opened = stdio::open(&request.stdio, source).await?;

        exit::reserve_exit_record(&request.bundle);
        // From here on everything is undone by the drop of the machine.
        let machine = machine::boot(&self.settings, &plan).await?;
        let names = opened.for_agent(plan.console_size);
        let rootfs = guest_rootfs(&plan, &machine);
        // The agent takes streams before and after the request: they connect meanwhile.
        let streams = opened.connect(&machine.dialer());
        let created =
            machine.agent().create_container(&request.id, plan.spec_json, rootfs, plan.files, names).await;
        let create = machine.explained(created).await?;
        if let Some(cgroup) = machine.cgroup() {
            // Not before: the boot is ours, and not the container's to pay for.
            cgroup.limit_cpu(plan.cgroup.cpu_max)?;
        }

        let created = Instant::now();
        let pid = machine.vm().pid();
        let times = phases::Times {
            requested,
            boot: machine.times.clone(),
            create,
            created,
            start_us: 0,
            start_requested: None,
            started: None,
            ended: None,
        };
        let mut init = Process::new(request.stdio.clone(), streams);
        let init_id = ProcessId { container: request.id.clone(), exec: String::new() };
        exit::watch_process(&machine, &init_id, init.streams.take_drain(), self.sender.clone());
        watch_events(&machine, request.id.clone(), self.sender.clone());
        self.container = Some(Container {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            on_exit: request.on_exit,
            machine: Some(machine),
            ending: None,
            pid,
            memory_mib: plan.memory_mib,
            init,
            execs: BTreeMap::new(),
            times,
        });
        info!(container = request.id, pid, "container created");
        self.publish(SandboxEvent::Created { request: Box::new(request), pid }).await;
        Ok(pid)
    }

    fn plan(&self, request: &CreateRequest) -> Result<Plan, SandboxError> {
        let path = request.bundle.join("config.json");
        let spec_json = fs::read(&path).map_err(|source| SandboxError::ReadSpec { path, source })?;
        Ok(plan::plan(Inputs {
            bundle: &request.bundle,
            spec_json: &spec_json,
            rootfs: &request.rootfs,
            settings: &self.settings.config.vm,
            host: HostLimits::of_this_host(),
        })?)
    }

    /// Lets a process execute its program.
    pub(super) async fn start(&mut self, id: &ProcessId) -> Result<u32, SandboxError> {
        let requested = Instant::now();
        let sender = self.sender.clone();
        let container = self.container(&id.container)?;
        let process = container.process(id)?;
        let state = process.state.after(Move::Start)?;
        process.streams.open_stdin()?;
        let machine = container.machine()?;
        let started = machine.agent().start(&id.into()).await;
        let start_us = machine.explained(started).await?;

        let pid = container.pid;
        container.process(id)?.state = state;
        if id.exec.is_empty() {
            container.times.start_us = start_us;
            container.times.start_requested = Some(requested);
            container.times.started = Some(Instant::now());
        } else {
            let drain = container.process(id)?.streams.take_drain();
            exit::watch_process(container.machine()?, id, drain, sender);
        }
        info!(container = id.container, exec = id.exec, "process started");
        self.publish(SandboxEvent::Started { process: id.clone(), pid }).await;
        Ok(pid)
    }
}

fn guest_rootfs(plan: &Plan, machine: &Machine) -> GuestRootfs {
    match (&plan.rootfs, machine.layers()) {
        (RootfsPlan::Layers { upper_limit_bytes, .. }, Some(layers)) => {
            let layer = |(offset_bytes, length_bytes): &(u64, u64)| Layer {
                offset_bytes: *offset_bytes,
                length_bytes: *length_bytes,
                ..Default::default()
            };
            GuestRootfs::Layered {
                disk_id: ROOTFS_DISK.to_owned(),
                layers: layers.iter().map(layer).collect(),
                upper_limit_bytes: *upper_limit_bytes,
            }
        }
        _ => GuestRootfs::Shared { name: ROOTFS_SHARE.to_owned() },
    }
}
