//! The start of a container: plan, boot (for the first), connect, create; later, start.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nacre_protocol::task::OnExit;
use tracing::info;

use super::exit::watch_events;
use super::network::watch_network;
use super::{Container, Core, First, Place, Process, ProcessId, SandboxEvent, exit, phases};
use crate::agent::{GuestRootfs, Layer, NewContainer};
use crate::error::SandboxError;
use crate::hooks::{self, Hooks};
use crate::machine;
use crate::plan::pod::{Joined, Role};
use crate::plan::{self, HostLimits, Inputs, Mount, Plan, RootfsPlan};
use crate::state::Move;
use crate::stdio::{self, LogSource, StdioRequest};

/// Status of a container whose creation hooks run (runtime specification, runtime.md, "State").
pub(super) const CREATING: &str = "creating";

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
    /// Whether the caller may put network links into the VMM's namespace once the container is created.
    pub late_links: bool,
}

impl Core {
    /// Makes a container, up to its init's exec: the first boots the VM, another joins it. The VMM's PID.
    pub(super) async fn create(&mut self, request: CreateRequest) -> Result<u32, SandboxError> {
        request.id.parse::<nacre_protocol::id::ContainerId>()?;
        match (&self.first, self.containers.keys().next()) {
            (Some(first), _) if first.is_pod => self.join(request).await,
            (None, _) if self.pod.is_some() => Err(SandboxError::NotRunning(self.settings.id.to_string())),
            (_, Some(other)) => Err(SandboxError::HasContainer(other.clone())),
            _ => self.create_first(request).await,
        }
    }

    async fn create_first(&mut self, request: CreateRequest) -> Result<u32, SandboxError> {
        let requested = Instant::now();
        let plan = self.plan(&request, None)?;
        if let Role::Member { sandbox } = plan.role {
            return Err(SandboxError::NotRunning(crate::text::harmless(&sandbox, 128)));
        }
        let source = LogSource { namespace: self.settings.namespace.as_str(), container: &request.id };
        let opened = stdio::open(&request.stdio, source).await?;

        exit::reserve_exit_record(&request.bundle);
        // From here on everything is undone by the drop of the machine.
        let machine = machine::boot(&self.settings, &plan).await?;
        let names = opened.for_agent(plan.console_size);
        let (hooks, cpu_max, memory_mib) = (plan.hooks.clone(), plan.cgroup.cpu_max, plan.memory_mib);
        let (is_pod, network) = (plan.role == Role::Sandbox, plan.network.path().map(Path::to_owned));
        let users = plan.users.clone();
        // The agent takes streams before and after the request: they connect meanwhile.
        let streams = opened.connect(&machine.dialer());
        let wanted = new_container(plan, machine.layers());
        let created = machine.agent().create_container(&request.id, wanted, names).await;
        let create = machine.explained(created).await?;
        let state = hooks.state(&request.id, CREATING, machine.vm().pid(), &request.bundle);
        hooks::run(&hooks.create, &state).await?;
        if let Some(cgroup) = machine.cgroup() {
            // Not before: the boot is ours, and not the container's to pay for.
            cgroup.limit_cpu(cpu_max)?;
        }

        let times = phases::Times {
            requested,
            boot: machine.times.clone(),
            create: create.timings,
            created: Instant::now(),
            start_us: 0,
            start_requested: None,
            started: None,
            ended: None,
        };
        self.first = Some(First {
            id: request.id.clone(),
            is_pod,
            guest_pid: Some(create.pid),
            network,
            memory_mib,
            own_processes: false,
            joined: 0,
            oom_score_adj: None,
            // Its own configuration has them.
            sysctls: BTreeMap::new(),
            users,
        });
        watch_events(&machine, self.sender.clone());
        let machine = self.machine.insert(machine);
        watch_network(machine, self.sender.clone());
        let pid = machine.vm().pid();
        let init = Process::new(request.stdio.clone(), streams);
        self.keep(request, init, Place::First(Box::new(times)), (pid, hooks)).await
    }

    /// Watches a new container's init, and tells of it.
    pub(super) async fn keep(
        &mut self,
        request: CreateRequest,
        mut init: Process,
        place: Place,
        (pid, hooks): (u32, Hooks),
    ) -> Result<u32, SandboxError> {
        let id = ProcessId { container: request.id.clone(), exec: String::new() };
        if let Some(machine) = &self.machine {
            exit::watch_process(machine, &id, &mut init, self.sender.clone());
        }
        let container = Container {
            bundle: request.bundle.clone(),
            on_exit: request.on_exit,
            pid,
            init,
            execs: BTreeMap::new(),
            place,
            hooks,
            oom_told: false,
        };
        self.containers.insert(request.id.clone(), container);
        info!(container = request.id, pid, "container created");
        self.publish(SandboxEvent::Created { request: Box::new(request), pid }).await;
        Ok(pid)
    }

    pub(super) fn plan(
        &self,
        request: &CreateRequest,
        joined: Option<Joined<'_>>,
    ) -> Result<Plan, SandboxError> {
        let path = request.bundle.join("config.json");
        let spec_json = fs::read(&path).map_err(|source| SandboxError::ReadSpec { path, source })?;
        Ok(plan::plan(Inputs {
            bundle: &request.bundle,
            spec_json: &spec_json,
            rootfs: &request.rootfs,
            settings: &self.settings.config.vm,
            host: HostLimits::of_this_host(),
            late_links: request.late_links,
            joined,
        })?)
    }

    /// Lets a process execute its program.
    pub(super) async fn start(&mut self, id: &ProcessId) -> Result<u32, SandboxError> {
        let requested = Instant::now();
        let sender = self.sender.clone();
        self.process(id)?.state.after(Move::Start)?;
        if id.exec.is_empty() {
            // Docker has put its links there between Create and Start; the program must find them.
            self.update_network().await?;
        }
        let (container, machine) = self.running(&id.container)?;
        let process = container.process(id)?;
        let state = process.state.after(Move::Start)?;
        process.streams.open_stdin()?;
        let started = machine.agent().start(&id.into()).await;
        let start_us = machine.explained(started).await?;

        let process = container.process(id)?;
        process.state = state;
        if !id.exec.is_empty() {
            exit::watch_process(machine, id, process, sender);
        } else if let Place::First(times) = &mut container.place {
            times.start_us = start_us;
            times.start_requested = Some(requested);
            times.started = Some(Instant::now());
        }
        let pid = container.pid;
        if id.exec.is_empty() {
            let state = container.hooks.state(&id.container, "running", pid, &container.bundle);
            tell_failure(hooks::run(&container.hooks.poststart, &state).await);
        }
        info!(container = id.container, exec = id.exec, "process started");
        self.publish(SandboxEvent::Started { process: id.clone(), pid }).await;
        Ok(pid)
    }
}

/// A hook that comes too late to stop anything only warns, as the specification has it.
pub(super) fn tell_failure(result: Result<(), hooks::HookError>) {
    if let Err(error) = result {
        tracing::warn!(error = &error as &dyn std::error::Error, "a hook failed");
    }
}

/// The container for the agent; `layers` tells where those of its root lie on their disk.
pub(super) fn new_container(plan: Plan, layers: &[(u64, u64)]) -> NewContainer {
    let layer = |(offset_bytes, length_bytes): &(u64, u64)| Layer {
        offset_bytes: *offset_bytes,
        length_bytes: *length_bytes,
        ..Default::default()
    };
    let rootfs = match plan.rootfs {
        RootfsPlan::Layers { disk_id, upper_limit_bytes, .. } => {
            GuestRootfs::Layered { disk_id, layers: layers.iter().map(layer).collect(), upper_limit_bytes }
        }
        RootfsPlan::Disk { disk_id, read_only, .. } => GuestRootfs::Disk { disk_id, read_only },
        RootfsPlan::Directory { share, .. } => GuestRootfs::Shared { name: share },
        // A container has a root.
        RootfsPlan::None => GuestRootfs::Shared { name: String::new() },
    };
    NewContainer { spec_json: plan.spec_json, rootfs, files: plan.files, devices: plan.devices }
}
