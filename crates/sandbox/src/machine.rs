//! Everything on the host that a sandbox runs on, built up in one story and taken down in reverse.
//!
//! ```text
//! directory -> cgroup -> mounts -> user id -> VMM -> file server -> network -> vCPUs run -> agent says hello -> links up
//! ```
//!
//! Each step is a guard. While [`boot`] runs they are local variables, which Rust drops in reverse order when a
//! later step fails; then they are the fields of [`Machine`], declared in that reverse order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nacre_protocol::control::StartTimings;
use nacre_protocol::id::ContainerId;
use nacre_protocol::ports::SHARES_TAG;
use tracing::{debug, info};

use crate::agent::{Agent, AgentError, Greeting};
use crate::assets::Assets;
use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::error::SandboxError;
use crate::file_server::FileServer;
use crate::jail::JailId;
use crate::network::Network;
use crate::plan::pod::Role;
use crate::plan::{NetworkPlan, Plan, RootfsPlan};
use crate::record::{ProcessRef, Record, SandboxDir};
use crate::stdio::Dialer;
use crate::storage::{HostMounts, OpenDisks, open_disks, open_shares};
use crate::tunnel::{self, Served};
use crate::vm::{Parts, Place, Vm, VmError, VmExit};

mod addition;
mod hotplug;
mod sockets;

pub use addition::Addition;

/// Slots for links that come later, where they may.
const SPARE_SLOTS: u8 = 8;

/// Slots of a pod's VM for the disks of its containers and for links.
const POD_SLOTS: u8 = 16;

/// For a VM whose agent has gone to end by itself.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Who a sandbox is, and the host's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// containerd's namespace.
    pub namespace: ContainerId,
    /// Id of the sandbox.
    pub id: ContainerId,
    /// Where sandboxes are kept.
    pub run_dir: PathBuf,
    /// The host's settings.
    pub config: Config,
    /// Files of the door itself that `delete` removes when the shim is dead.
    pub files: Vec<PathBuf>,
}

/// A running VM with all that carries it.
#[derive(Debug)]
pub struct Machine {
    // The order of the fields is the order in which they are dropped.
    vm: Vm,
    agent: Agent,
    file_server: Option<FileServer>,
    network: Option<Network>,
    /// To the guest's loopback, and back.
    tunnels: Vec<Served>,
    /// Slots of the links that came after the boot, by their index in the namespace.
    link_slots: BTreeMap<u32, u32>,
    mounts: HostMounts,
    jail: Option<JailId>,
    cgroup: Option<Cgroup>,
    dir: SandboxDir,
    record: Record,
    assets: Assets,
    timeout: Duration,
    /// For an orderly end of a guest that may hold what is to be written.
    kill: Duration,
    has_unwritten: bool,
    /// Shares that were ever served.
    served: usize,
    /// Sockets of the host that the guest was ever given.
    sockets: u32,
    /// Where the layers of the first container lie on their disk, where it has any.
    layers: Vec<(u64, u64)>,
    /// How long the boot took.
    pub times: BootTimes,
}

/// Moments and durations of a boot.
#[derive(Debug, Clone)]
pub struct BootTimes {
    /// The VMM was started.
    pub vmm_spawned: Instant,
    /// The vCPUs ran.
    pub running: Instant,
    /// The agent answered.
    pub ready: Instant,
    /// What the VMM measured.
    pub start: StartTimings,
    /// What the agent measured.
    pub greeting: Greeting,
}

/// Boots a VM for this plan.
///
/// # Errors
/// See [`SandboxError`]. Nothing is left on the host.
pub async fn boot(settings: &Settings, plan: &Plan) -> Result<Machine, SandboxError> {
    let is_root = rustix::process::geteuid().is_root();
    let assets = Assets::new(&settings.config.assets);
    let vmm = assets.vmm()?;
    let (kernel, initramfs, kvm) = (assets.open_kernel()?, assets.open_initramfs()?, open_kvm()?);
    let OpenDisks { disks, layers } = open_disks(plan)?;
    let has_unwritten = may_hold_unwritten(plan);

    let dir = SandboxDir::create(&settings.run_dir, &settings.namespace, &settings.id)?;
    let mut record = first_record(settings);
    dir.write(&record)?;
    let cgroup = Cgroup::create(&plan.cgroup)?;
    record.cgroups = cgroup.as_ref().map(Cgroup::dirs).unwrap_or_default();
    record.mounts = HostMounts::points_of(plan);
    dir.write(&record)?;
    let mounts = HostMounts::make(plan)?;
    let jail_dir = settings.run_dir.join("jail");
    let jail = is_root.then(|| JailId::allocate(&jail_dir, hint(settings))).transpose()?;
    record.files.extend(jail.as_ref().map(|jail| jail.path().to_owned()));

    let birthplace = cgroup.as_ref().and_then(Cgroup::birthplace);
    let place = Place { program: &vmm, cgroup: birthplace, new_pid_namespace: is_root };
    let vmm_spawned = Instant::now();
    let (vm, serial) = Vm::spawn(&place)?;
    settle(vm.child(), cgroup.as_ref(), plan)?;
    record.children.push(ProcessRef::of(vm.pid()));
    let file_server = match plan.needs_file_server() {
        false => None,
        true => Some(FileServer::spawn(&Place { program: &assets.fs()?, ..place })?),
    };
    if let Some(server) = &file_server {
        settle(server.child(), cgroup.as_ref(), plan)?;
        record.children.push(ProcessRef::of(server.child().pid()));
    }
    dir.write(&record)?;

    let timeout = settings.config.timeouts.boot();
    let fs = match &file_server {
        Some(server) => {
            let open = open_shares(&plan.shares, plan.users.as_ref())?;
            Some(server.start(&plan.shares, &open, dir.path(), timeout).await?)
        }
        None => None,
    };
    let mut network = plan.network.path().map(Network::open).transpose()?;
    let taps = match &mut network {
        Some(network) => network.update().await?.added,
        None => Vec::new(),
    };
    let socket = |what| move |source: io::Error| SandboxError::Socket { what, source };
    let (agent_socket, agent_of_vmm) = UnixStream::pair().map_err(socket("the agent's connection"))?;
    let parts = Parts {
        vcpus: plan.vcpus,
        memory_mib: plan.memory_mib,
        kernel_log: plan.kernel_log,
        kvm,
        kernel,
        initramfs,
        vsock: crate::socket::listen(&dir.vsock()).map_err(socket("the vsock socket"))?,
        agent: agent_of_vmm,
        disks,
        taps,
        fs,
        hotplug_slots: hotplug_slots(plan),
        jail: jail.as_ref().map(JailId::config),
    };
    let start = vm.start(parts, serial, timeout).await?;
    let running = Instant::now();
    if plan.network == NetworkPlan::Own && jail.is_some() {
        // A jailed VMM has left the host's namespace for one of its own by now.
        network = Some(Network::open_own(&PathBuf::from(format!("/proc/{}/ns/net", vm.pid())))?);
    }
    let agent = Agent::new(agent_socket, settings.config.timeouts.agent())?;
    let tag = if file_server.is_some() { SHARES_TAG } else { "" };
    let greeting = hello(&vm, &agent, plan, tag, timeout).await?;
    if let Some(network) = &mut network {
        if let Some(request) = network.untold()
            && let Err(error) = agent.configure_network(request).await
        {
            return Err(explain(&vm, error).await);
        }
        network.told();
    }
    let times = BootTimes { vmm_spawned, running, ready: Instant::now(), start, greeting };
    debug!(sandbox = %settings.id, ?times, "agent ready");
    info!(sandbox = %settings.id, vmm_pid = vm.pid(), kernel = times.greeting.kernel_release, "VM started");
    let mut machine = Machine {
        vm,
        agent,
        file_server,
        network,
        tunnels: Vec::new(),
        link_slots: BTreeMap::new(),
        mounts,
        jail,
        cgroup,
        dir,
        record,
        assets,
        timeout,
        kill: settings.config.timeouts.kill(),
        has_unwritten,
        served: plan.shares.len(),
        sockets: 0,
        layers,
        times,
    };
    if plan.role == Role::Sandbox {
        machine.serve_loopback();
    }
    Ok(machine)
}

/// A VM that may get more devices than it boots with has room for them; each slot costs the boot a look at it.
fn hotplug_slots(plan: &Plan) -> u8 {
    match (&plan.role, &plan.network) {
        (Role::Sandbox, _) => POD_SLOTS,
        (_, NetworkPlan::None) => 0,
        _ => SPARE_SLOTS,
    }
}

/// Whether the guest may hold bytes that the host has not got yet.
fn may_hold_unwritten(plan: &Plan) -> bool {
    plan.shares.iter().any(|share| !share.read_only)
        || plan.devices.iter().any(|device| !device.read_only)
        || matches!(plan.rootfs, RootfsPlan::Disk { read_only: false, .. })
}

fn open_kvm() -> Result<File, SandboxError> {
    File::options().read(true).write(true).open("/dev/kvm").map_err(|source| {
        let remedy = match source.kind() {
            io::ErrorKind::NotFound => {
                "load the module kvm_intel or kvm_amd, and switch virtualisation on in the firmware (`nacre check`)"
            }
            io::ErrorKind::PermissionDenied => "run as root, or join the group that owns it",
            _ => "see `nacre check`",
        };
        SandboxError::Kvm { remedy, source }
    })
}

fn first_record(settings: &Settings) -> Record {
    Record {
        shim: ProcessRef::own(),
        children: Vec::new(),
        mounts: Vec::new(),
        cgroups: Vec::new(),
        files: settings.files.clone(),
    }
}

/// Spreads sandboxes over the range of user ids.
fn hint(settings: &Settings) -> u32 {
    let bytes = settings.id.as_str().bytes();
    bytes.fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// What is done to a process that still waits for its first message.
fn settle(child: &crate::process::Child, cgroup: Option<&Cgroup>, plan: &Plan) -> Result<(), SandboxError> {
    if let Some(cgroup) = cgroup {
        cgroup.join(child.pid())?;
    }
    if let Some(value) = plan.oom_score_adj {
        prefer(child, value);
    }
    Ok(())
}

/// Tells the host's OOM killer what to think of a process.
fn prefer(child: &crate::process::Child, value: i32) {
    if let Err(error) = child.set_oom_score_adj(value) {
        // Lowering needs CAP_SYS_RESOURCE; the guest's own value still holds inside.
        debug!(error = &error as &dyn std::error::Error, "OOM score stays as it is");
    }
}

async fn hello(
    vm: &Vm,
    agent: &Agent,
    plan: &Plan,
    tag: &str,
    timeout: Duration,
) -> Result<Greeting, SandboxError> {
    let log_level = if tracing::enabled!(tracing::Level::DEBUG) { "debug" } else { "info" };
    let call = agent.hello(&plan.hostname, tag, log_level, plan.users.as_ref(), timeout);
    let result = tokio::select! {
        biased;
        result = call => result,
        exit = vm.ended() => return Err(VmError::Ended(exit).into()),
    };
    match result {
        Ok(greeting) => Ok(greeting),
        Err(AgentError::Unresponsive { timeout, .. }) => {
            vm.kill();
            Err(SandboxError::BootTimeout { timeout, exit: vm.ended().await })
        }
        Err(error) => Err(explain(vm, error).await),
    }
}

/// An agent that went away usually took the VM along, or the other way round: then that is the error.
async fn explain(vm: &Vm, error: AgentError) -> SandboxError {
    if matches!(error, AgentError::Gone { .. })
        && let Ok(exit) = tokio::time::timeout(END_TIMEOUT, vm.ended()).await
    {
        return VmError::Ended(exit).into();
    }
    error.into()
}

impl Machine {
    /// Sets the preference of the host's OOM killer for what runs there.
    pub fn set_oom_score_adj(&self, value: i32) {
        prefer(self.vm.child(), value);
        if let Some(server) = &self.file_server {
            prefer(server.child(), value);
        }
    }

    /// The agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The VM.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Where streams to the guest are asked for.
    pub fn dialer(&self) -> Dialer {
        Dialer::new(self.dir.vsock())
    }

    /// Where the layers lie on the root disk.
    pub fn layers(&self) -> &[(u64, u64)] {
        &self.layers
    }

    /// The host's cgroup.
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Result of a request to the agent, with the VM's end as the error where that was the cause.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn explained<T>(&self, result: Result<T, AgentError>) -> Result<T, SandboxError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => Err(explain(&self.vm, error).await),
        }
    }

    /// Port-forward connects to the loopback of the pod's namespace.
    fn serve_loopback(&mut self) {
        let dialer = self.dialer();
        if let Some(Ok(namespace)) = self.network.as_ref().map(Network::namespace) {
            self.tunnels.push(tunnel::serve_loopback(namespace, dialer));
        }
    }

    /// Ends the VM and undoes everything. A guest that may hold unwritten bytes of a share writes them first.
    pub async fn take_down(self) -> Arc<VmExit> {
        let shutdown = async {
            if self.agent.shutdown().await.is_ok() {
                self.vm.ended().await;
            }
        };
        if self.has_unwritten && tokio::time::timeout(self.kill, shutdown).await.is_err() {
            debug!("the guest did not shut down in time");
        }
        self.vm.kill();
        let exit = self.vm.ended().await;
        if let Some(network) = self.network {
            network.leave().await;
        }
        debug!(
            jailed = self.jail.is_some(),
            served = self.file_server.is_some(),
            mounts = self.mounts.count(),
            "VM ended"
        );
        exit
    }
}
