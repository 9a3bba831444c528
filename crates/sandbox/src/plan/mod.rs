//! From an OCI configuration and the mounts of a root file system to what a VM needs.
//!
//! Nothing is opened here but small files of the bundle, which go along by value ([`files`]). What the configuration asks for and a guest cannot have is an error that names it;
//! what only has meaning on the host (labels of its security modules, paths of its cgroups) is taken out of
//! the document that the guest gets. The rest of the document crosses as it is, unknown fields included.
//!
//! [`mounts`] sorts bind mounts into shares, [`rootfs`] the root's mounts into a disk or a directory, [`devices`] block devices into disks,
//! [`annotations`] holds the short list of annotations that mean anything to us (B5), [`pod`] those by which the CRI
//! makes several containers a pod.

pub mod annotations;
pub mod cgroup;
pub mod devices;
pub mod files;
pub mod mounts;
mod nodes;
pub mod pod;
pub mod resources;
pub mod rootfs;
mod spec;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nacre_protocol::ports::USER_NAMESPACE;
use nacre_protocol::vm::KernelLog;
use serde_json::Value;

pub use cgroup::CgroupPlan;
pub use devices::BlockDevice;
pub use files::BundleFile;
pub use mounts::Share;
pub use resources::HostLimits;
pub use rootfs::{Mount, RootfsPlan};

use crate::config::VmSettings;
use crate::hooks::Hooks;
use crate::mount_points::MountPoint;
use crate::users::{IdMapError, IdMaps};
use crate::volumes::Volume;

/// Longest OCI configuration in bytes: it crosses to the agent in one message of at most 4 MiB.
pub const MAX_SPEC_BYTES: usize = 3 << 20;

/// Type of a network namespace in an OCI configuration.
const NETWORK: &str = "network";

/// Type of a user namespace there.
const USER: &str = "user";

/// Host name of a guest whose configuration has none.
const DEFAULT_HOSTNAME: &str = "nacre";

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The bundle's directory.
    pub bundle: &'a Path,
    /// Its `config.json`.
    pub spec_json: &'a [u8],
    /// Mounts that make the root file system; none: the configuration's `root.path`.
    pub rootfs: &'a [Mount],
    /// Size of VMs on this host.
    pub settings: &'a VmSettings,
    /// What the host has.
    pub host: HostLimits,
    /// Whether the caller may put links into the VMM's network namespace, as Docker does.
    pub late_links: bool,
    /// The sandbox that runs already; none: the container is the first.
    pub joined: Option<pod::Joined<'a>>,
}

/// The network namespace whose links a VM gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NetworkPlan {
    /// None: nobody will put links anywhere.
    #[default]
    None,
    /// One that a caller prepared.
    Path(PathBuf),
    /// That of the VMM, which callers find by its PID, and where they may put links when the container is created.
    Own,
}

impl NetworkPlan {
    /// The namespace that was prepared.
    pub fn path(&self) -> Option<&Path> {
        if let Self::Path(path) = self { Some(path) } else { None }
    }
}

/// A VM and a container in it; of a container that joins a sandbox, what is of the container.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What the container is to its VM.
    pub role: pod::Role,
    /// vCPUs.
    pub vcpus: u8,
    /// Guest memory.
    pub memory_mib: u32,
    /// How much the guest kernel prints.
    pub kernel_log: KernelLog,
    /// Where the root file system comes from.
    pub rootfs: RootfsPlan,
    /// What the container's mounts need in its root directory, in their order, and its working directory.
    pub mount_points: Vec<MountPoint>,
    /// Host files and directories that the guest sees, the root directory (if it is one) first.
    pub shares: Vec<Share>,
    /// Small files of the bundle that the guest gets by value.
    pub files: Vec<BundleFile>,
    /// Volumes that the guest gets by value, and again at each change.
    pub volumes: Vec<Volume>,
    /// Block devices of the host that the container uses as they are.
    pub devices: Vec<BlockDevice>,
    /// The configuration as the agent gets it.
    pub spec_json: Vec<u8>,
    /// Whose links the VM gets.
    pub network: NetworkPlan,
    /// Where the sandbox's processes go on the host.
    pub cgroup: CgroupPlan,
    /// Host name of the guest.
    pub hostname: String,
    /// Whether its processes are its own.
    pub own_processes: bool,
    /// Its ids, where it is in a user namespace.
    pub users: Option<IdMaps>,
    /// Size of the terminal, columns and rows, where the configuration has one.
    pub console_size: Option<(u32, u32)>,
    /// Preference of the host's OOM killer for the sandbox's processes.
    pub oom_score_adj: Option<i32>,
    /// What runs on the host around the container.
    pub hooks: Hooks,
}

/// A configuration that cannot become a VM.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The document is too long.
    #[error("config.json has {0} bytes, at most {MAX_SPEC_BYTES} are allowed")]
    TooLong(usize),
    /// The document is not an OCI configuration.
    #[error("config.json is not a valid OCI runtime configuration")]
    Parse(#[source] serde_json::Error),
    /// An annotation of ours that does not exist or has a bad value.
    #[error(transparent)]
    Annotation(#[from] annotations::AnnotationError),
    /// A mount that a guest cannot have.
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    /// Devices that make no sense.
    #[error(transparent)]
    Device(#[from] devices::DeviceError),
    /// Root mounts that make no root file system.
    #[error(transparent)]
    Rootfs(#[from] rootfs::RootfsError),
    /// An annotation of the CRI's that has no meaning.
    #[error(transparent)]
    Pod(#[from] pod::PodError),
    /// A limit that the host cannot give.
    #[error(transparent)]
    Resources(#[from] resources::ResourceError),
    /// A cgroup path that leads elsewhere.
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupPathError),
    /// A namespace of the host.
    #[error("joining the {kind} namespace {path} is not supported")]
    JoinNamespace {
        /// Type of the namespace.
        kind: String,
        /// Where it is.
        path: String,
    },
    /// A debugger's wish for the processes of one container.
    #[error(
        "the processes of another container (a debug target) cannot be joined; let the pod share its processes"
    )]
    TargetProcesses,
    /// A pod in a namespace of the host's.
    #[error("a pod with the host's {0} namespace is not possible in a VM; run it with another runtime class")]
    HostNamespace(&'static str),
    /// A container that would be the guest's root in a pod whose others are not.
    #[error(
        "a container without a user namespace is not possible in a pod that has one (`hostUsers: false`)"
    )]
    NoUserNamespace,
    /// Ids that cannot be mapped so.
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    /// No process to run.
    #[error("config.json has no process")]
    NoProcess,
}

/// Makes the plan.
///
/// # Errors
/// See [`PlanError`].
pub fn plan(inputs: Inputs<'_>) -> Result<Plan, PlanError> {
    if inputs.spec_json.len() > MAX_SPEC_BYTES {
        return Err(PlanError::TooLong(inputs.spec_json.len()));
    }
    let mut document: Value = serde_json::from_slice(inputs.spec_json).map_err(PlanError::Parse)?;
    let spec: spec::Spec = serde_json::from_slice(inputs.spec_json).map_err(PlanError::Parse)?;
    match &inputs.joined {
        Some(joined) => {
            pod::join_namespaces(&mut document, &spec.linux.namespaces, joined)?;
            pod::add_sysctls(&mut document, joined);
        }
        None => refuse_namespaces(&spec)?,
    }

    let users = users(&mut document, &spec.linux, inputs.joined.as_ref())?;
    let options = annotations::parse(&spec.annotations)?;
    let role = pod::role(&spec.annotations)?;
    let size = match role {
        // Its own limits are those of a process that sleeps.
        pod::Role::Sandbox => {
            refuse_host_namespaces(&spec)?;
            let limits = pod::resources(&spec.annotations)?;
            let size = resources::size(&limits, inputs.settings, inputs.host)?.of_pod(inputs.settings);
            options.resize(size, &limits, inputs.host)?
        }
        // It joins a VM that has its size.
        pod::Role::Member { .. } => resources::size(&spec.linux.resources, inputs.settings, inputs.host)?,
        pod::Role::Alone => {
            let limits = &spec.linux.resources;
            options.resize(resources::size(limits, inputs.settings, inputs.host)?, limits, inputs.host)?
        }
    };
    let prefix = inputs.joined.map_or("", |joined| joined.share_prefix);
    let mut shares = Vec::new();
    let rootfs = rootfs::sort(inputs.rootfs, &spec.root, inputs.bundle, prefix, &mut shares)?;
    let mut mount_points = mounts::points(&document, inputs.bundle);
    let place = mounts::Place {
        bundle: inputs.bundle,
        prefix,
        annotations: &spec.annotations,
        users: users.as_ref(),
    };
    let mut volumes = Vec::new();
    // Only the containers of a pod have any, and those join.
    let by_value = inputs.joined.is_some().then_some(&mut volumes);
    let mounts::Binds { files, disks } = mounts::share_binds(&mut document, &place, &mut shares, by_value)?;
    let devices = devices::take(&mut document, prefix, disks)?;
    strip_host_labels(&mut document);
    share_network(&mut document);
    let network = network(&spec, inputs.late_links);
    let has_shares = !shares.is_empty() || role == pod::Role::Sandbox;
    let cgroup = cgroup::plan(&spec.linux, inputs.settings, &size, has_shares)?;
    let hooks = take_hooks(&mut document, spec.hooks, spec.annotations);
    let own_processes =
        spec.linux.namespaces.iter().any(|found| found.kind == "pid" && found.path.is_empty());
    let process = spec.process.ok_or(PlanError::NoProcess)?;
    mount_points.push(MountPoint { path: PathBuf::from(&process.cwd), source: None });
    Ok(Plan {
        role,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        kernel_log: options.kernel_log,
        rootfs,
        mount_points,
        own_processes,
        users,
        network,
        cgroup,
        shares,
        files,
        volumes,
        devices,
        spec_json: serde_json::to_vec(&document).map_err(PlanError::Parse)?,
        hostname: if spec.hostname.is_empty() { DEFAULT_HOSTNAME.to_owned() } else { spec.hostname },
        console_size: process.console_size.map(|size| (size.width, size.height)),
        oom_score_adj: process.oom_score_adj,
        hooks,
    })
}

impl Plan {
    /// Whether the VM needs a file server.
    pub fn needs_file_server(&self) -> bool {
        // Whoever joins a sandbox may bring the first share.
        !self.shares.is_empty() || self.role == pod::Role::Sandbox
    }
}

fn refuse_namespaces(spec: &spec::Spec) -> Result<(), PlanError> {
    let of_the_host = |namespace: &&spec::Namespace| {
        !namespace.path.is_empty() && ![NETWORK, USER].contains(&namespace.kind.as_str())
    };
    match spec.linux.namespaces.iter().find(of_the_host) {
        Some(namespace) => Err(pod::foreign(namespace)),
        None => Ok(()),
    }
}

/// The ids of a container in a user namespace. That of a sandbox is made with the guest, and named by a path of its own; a path
/// that the host knows it by says nothing there.
fn users(
    document: &mut Value,
    linux: &spec::Linux,
    joined: Option<&pod::Joined<'_>>,
) -> Result<Option<IdMaps>, PlanError> {
    let namespaces = || linux.namespaces.iter().enumerate();
    let pods = joined.and_then(|joined| joined.users);
    let Some((index, namespace)) = namespaces().find(|(_, namespace)| namespace.kind == USER) else {
        return if pods.is_some() { Err(PlanError::NoUserNamespace) } else { Ok(None) };
    };
    let (maps, is_sandboxes) = match joined {
        Some(_) if !namespace.path.is_empty() => (pods.cloned(), true),
        _ => (IdMaps::new(linux.uid_mappings.clone(), linux.gid_mappings.clone())?, joined.is_none()),
    };
    if maps.is_none() {
        // Without a path the agent says what is missing.
        return if namespace.path.is_empty() { Ok(None) } else { Err(pod::foreign(namespace)) };
    }
    if let Some(namespace) =
        document.pointer_mut(&format!("/linux/namespaces/{index}")).filter(|_| is_sandboxes)
        && let Some(namespace) = namespace.as_object_mut()
    {
        namespace.insert("path".to_owned(), Value::from(USER_NAMESPACE));
    }
    // Its own say nothing in a namespace that is the pod's.
    if let (Some(linux), Some(maps)) = (document.get_mut("linux").and_then(Value::as_object_mut), &maps) {
        let (uids, gids) = maps.to_document();
        linux.insert("uidMappings".to_owned(), uids);
        linux.insert("gidMappings".to_owned(), gids);
    }
    Ok(maps)
}

/// A pod that wants the host's network, processes or IPC says so by what its sandbox does not have.
fn refuse_host_namespaces(spec: &spec::Spec) -> Result<(), PlanError> {
    let has = |kind: &str| spec.linux.namespaces.iter().any(|namespace| namespace.kind == kind);
    match [NETWORK, "pid", "ipc"].into_iter().find(|kind| !has(kind)) {
        Some(kind) => Err(PlanError::HostNamespace(kind)),
        None => Ok(()),
    }
}

/// Takes the host's hooks out: what is left is the agent's, which refuses it.
fn take_hooks(document: &mut Value, hooks: spec::Hooks, annotations: BTreeMap<String, String>) -> Hooks {
    if let Some(all) = document.get_mut("hooks").and_then(Value::as_object_mut) {
        for name in ["prestart", "createRuntime", "poststart", "poststop"] {
            all.remove(name);
        }
    }
    let spec::Hooks { mut prestart, create_runtime, poststart, poststop } = hooks;
    prestart.extend(create_runtime);
    Hooks { create: prestart, poststart, poststop, annotations }
}

/// Takes out what names a thing of the host's: profiles of its security modules, its cgroups.
fn strip_host_labels(document: &mut Value) {
    let of_the_host: [(&str, &[&str]); 2] = [
        ("process", &["apparmorProfile", "selinuxLabel"]),
        ("linux", &["mountLabel", "cgroupsPath", "intelRdt"]),
    ];
    for (section, keys) in of_the_host {
        if let Some(object) = document.get_mut(section).and_then(Value::as_object_mut) {
            for key in keys {
                object.remove(*key);
            }
        }
    }
}

/// The network namespace that somebody prepared for the sandbox, or will.
fn network(spec: &spec::Spec, late_links: bool) -> NetworkPlan {
    match spec.linux.namespaces.iter().find(|namespace| namespace.kind == NETWORK) {
        Some(namespace) if !namespace.path.is_empty() => NetworkPlan::Path(PathBuf::from(&namespace.path)),
        Some(_) if late_links => NetworkPlan::Own,
        _ => NetworkPlan::None,
    }
}

/// Takes the network namespace out: the guest's own network is the sandbox's, with its links and its loopback, and
/// nobody else is in it (`docs/adr/0010-the-network-is-the-vms.md`). A container that joins with a user namespace of its own
/// keeps its own, since only the owner of a network namespace may mount its sysfs (`user_namespaces(7)`).
fn share_network(document: &mut Value) {
    let namespaces = document.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut);
    let Some(namespaces) = namespaces else { return };
    let has_path = |namespace: &Value| {
        namespace.get("path").and_then(Value::as_str).is_some_and(|path| !path.is_empty())
    };
    let is = |namespace: &Value, kind: &str| namespace.get("type").and_then(Value::as_str) == Some(kind);
    let own_user = namespaces.iter().any(|namespace| is(namespace, USER) && !has_path(namespace));
    // A path is the host's, and its links are the guest's own by now.
    namespaces.retain(|namespace| !is(namespace, NETWORK) || own_user && !has_path(namespace));
}

/// A path of the configuration: absolute, or relative to the bundle.
fn in_bundle(bundle: &Path, path: &str) -> PathBuf {
    bundle.join(path)
}

#[cfg(test)]
mod tests;
