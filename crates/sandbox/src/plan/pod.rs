//! A pod: several containers in one VM, as the CRI names them in annotations (containerd's
//! `internal/cri/annotations`).
//!
//! The first container of a pod is its sandbox: it makes the VM, sized by the sum of the pod's limits, and the namespaces
//! that the others join. Where a later one's configuration names a namespace of the sandbox by the PID on the host, that is the VMM's:
//! the guest gets the path of the same namespace of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nacre_protocol::id::ContainerId;
use nacre_protocol::ports::PROCESS_NAMESPACE;
use serde_json::{Map, Value};

use super::spec::{Cpu, Linux, Memory, Namespace, Resources};
use super::{HostLimits, NETWORK, NetworkPlan, Plan, PlanError, RootfsPlan, USER};
use crate::config::VmSettings;
use crate::hooks::Hooks;
use crate::text::harmless;
use crate::users::IdMaps;

const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// What a container is to its VM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Role {
    /// The only one.
    #[default]
    Alone,
    /// The first of a pod.
    Sandbox,
    /// A further one of a pod.
    Member {
        /// The id of its sandbox.
        sandbox: String,
    },
}

/// An annotation of the CRI that has no meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key} cannot be {value:?}")]
pub struct PodError {
    key: &'static str,
    value: String,
}

/// The sandbox that a further container joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined<'a> {
    /// Prefix of the names of its shares, which no other container of the sandbox has.
    pub share_prefix: &'a str,
    /// PID that the host knows the sandbox by.
    pub host_pid: u32,
    /// PID of the sandbox's init in the guest; none: it has no process of its own, and its namespaces are the guest's.
    pub guest_pid: Option<u32>,
    /// The sandbox's network namespace.
    pub network: Option<&'a Path>,
    /// Some container of the pod has processes of its own: the pod does not share them.
    pub own_processes: bool,
    /// Those of the pod, where no process of its sandbox has set them.
    pub sysctls: &'a BTreeMap<String, String>,
    /// The ids of the pod, where it is in a user namespace.
    pub users: Option<&'a IdMaps>,
}

/// Reads the role.
///
/// # Errors
/// [`PodError`] for a type that the CRI does not have, or a container without a sandbox.
pub fn role(annotations: &BTreeMap<String, String>) -> Result<Role, PodError> {
    let value = |key| annotations.get(key).map(String::as_str).unwrap_or_default();
    match (value(CONTAINER_TYPE), value(SANDBOX_ID)) {
        ("", _) => Ok(Role::Alone),
        ("sandbox", _) => Ok(Role::Sandbox),
        ("container", "") => Err(PodError { key: SANDBOX_ID, value: String::new() }),
        ("container", sandbox) => Ok(Role::Member { sandbox: sandbox.to_owned() }),
        (other, _) => Err(PodError { key: CONTAINER_TYPE, value: harmless(other, 64) }),
    }
}

/// Reads the role out of a `config.json`.
///
/// # Errors
/// [`PlanError::TooLong`], [`PlanError::Parse`] and [`PlanError::Pod`].
pub fn role_of(spec_json: &[u8]) -> Result<Role, PlanError> {
    if spec_json.len() > super::MAX_SPEC_BYTES {
        return Err(PlanError::TooLong(spec_json.len()));
    }
    let spec: super::spec::Spec = serde_json::from_slice(spec_json).map_err(PlanError::Parse)?;
    Ok(role(&spec.annotations)?)
}

/// The sum of the pod's limits; 0, and what is not there, is none.
pub(super) fn resources(annotations: &BTreeMap<String, String>) -> Result<Resources, PodError> {
    let number = |key: &'static str| match annotations.get(key) {
        None => Ok(None),
        Some(text) => match text.parse::<i64>() {
            Ok(number) => Ok(Some(number).filter(|number| *number > 0)),
            Err(_) => Err(PodError { key, value: harmless(text, 64) }),
        },
    };
    let positive = |key| Ok(number(key)?.map(i64::unsigned_abs));
    Ok(Resources {
        memory: Memory { limit: number(MEMORY)? },
        cpu: Cpu { shares: positive(CPU_SHARES)?, quota: number(CPU_QUOTA)?, period: positive(CPU_PERIOD)? },
    })
}

/// A sandbox without a container of its own, as the Sandbox API makes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodRequest {
    /// Host name of the pod; empty: the guest's default.
    pub hostname: String,
    /// Where the pod's containers are in the host's cgroups; empty: where the shim is.
    pub cgroup_parent: String,
    /// The network namespace that was prepared for it.
    pub network: Option<PathBuf>,
    /// The sum of its containers' limits, without the pod's overhead.
    pub limits: PodLimits,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Kernel parameters of its namespaces: each of its containers sets them, and the agent knows which may be.
    pub sysctls: BTreeMap<String, String>,
    /// Its ids, where it is in a user namespace.
    pub users: Option<IdMaps>,
}

/// Limits of a pod; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodLimits {
    /// Bytes.
    pub memory_bytes: i64,
    /// Microseconds of CPU time in each period.
    pub cpu_quota_us: i64,
    /// Microseconds.
    pub cpu_period_us: i64,
    /// cgroup v1 `cpu.shares`.
    pub cpu_shares: i64,
}

/// Plans the VM of a sandbox without a container of its own.
///
/// # Errors
/// See [`PlanError`].
pub fn plan(
    id: &ContainerId,
    request: &PodRequest,
    settings: &VmSettings,
    host: HostLimits,
) -> Result<Plan, PlanError> {
    let options = super::annotations::parse(&request.annotations)?;
    let limits = request.limits;
    let above_zero = |number: i64| Some(number).filter(|number| *number > 0);
    let resources = Resources {
        memory: Memory { limit: above_zero(limits.memory_bytes) },
        cpu: Cpu {
            shares: above_zero(limits.cpu_shares).map(i64::unsigned_abs),
            quota: above_zero(limits.cpu_quota_us),
            period: above_zero(limits.cpu_period_us).map(i64::unsigned_abs),
        },
    };
    let size = super::resources::size(&resources, settings, host)?.of_pod(settings);
    let size = options.resize(size, &resources, host)?;
    let linux = Linux { cgroups_path: cgroups_path(&request.cgroup_parent, id), ..Linux::default() };
    let hostname = if request.hostname.is_empty() { super::DEFAULT_HOSTNAME } else { &request.hostname };
    Ok(Plan {
        role: Role::Sandbox,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        kernel_log: options.kernel_log,
        rootfs: RootfsPlan::None,
        mount_points: Vec::new(),
        own_processes: false,
        users: request.users.clone(),
        shares: Vec::new(),
        files: Vec::new(),
        volumes: Vec::new(),
        devices: Vec::new(),
        spec_json: Vec::new(),
        network: request.network.clone().map_or(NetworkPlan::None, NetworkPlan::Path),
        cgroup: super::cgroup::plan(&linux, settings, &size, true)?,
        hostname: hostname.to_owned(),
        console_size: None,
        oom_score_adj: None,
        hooks: Hooks::default(),
    })
}

/// As containerd names the cgroup of a pod's sandbox container, for either of the CRI's cgroup drivers.
fn cgroups_path(parent: &str, id: &ContainerId) -> String {
    match parent {
        "" => String::new(),
        slice if slice.ends_with(".slice") => {
            let slice = slice.rsplit('/').next().unwrap_or(slice);
            format!("{slice}:cri-containerd:{id}")
        }
        path => format!("{}/{id}", path.trim_end_matches('/')),
    }
}

/// Adds the pod's kernel parameters to those of the container, which win.
pub(super) fn add_sysctls(document: &mut Value, joined: &Joined<'_>) {
    if joined.sysctls.is_empty() {
        return;
    }
    let Some(linux) = document.get_mut("linux").and_then(Value::as_object_mut) else { return };
    let sysctls = linux.entry("sysctl").or_insert_with(|| Value::Object(Map::new()));
    if let Some(sysctls) = sysctls.as_object_mut() {
        for (key, value) in joined.sysctls {
            sysctls.entry(key.as_str()).or_insert_with(|| value.as_str().into());
        }
    }
}

/// Gives namespaces of the sandbox that the container joins the paths that they have in the guest. The network is not
/// among them: it is the VM's, and only checked to be the same.
pub(super) fn join_namespaces(
    document: &mut Value,
    namespaces: &[Namespace],
    joined: &Joined<'_>,
) -> Result<(), PlanError> {
    for (index, namespace) in namespaces.iter().enumerate().filter(|(_, found)| !found.path.is_empty()) {
        if namespace.kind == NETWORK {
            if joined.network != Some(Path::new(&namespace.path)) && file_of(namespace, joined).is_none() {
                return Err(foreign(namespace));
            }
            continue;
        }
        let name = file_of(namespace, joined).ok_or_else(|| foreign(namespace))?;
        if name == USER {
            // Of the pod (see `users` above), whoever its first process is.
            continue;
        }
        if name == "pid" && joined.own_processes {
            // All containers have the PID of the VMM, so that this may be any of them.
            return Err(PlanError::TargetProcesses);
        }
        let path = match joined.guest_pid {
            Some(pid) => format!("/proc/{pid}/ns/{name}"),
            // The guest's first process is the agent: its other processes are nobody's business.
            None if name == "pid" => PROCESS_NAMESPACE.to_owned(),
            None => format!("/proc/1/ns/{name}"),
        };
        if let Some(place) = document.pointer_mut(&format!("/linux/namespaces/{index}/path")) {
            *place = Value::String(path);
        }
    }
    Ok(())
}

/// The name below `/proc/PID/ns` of a namespace that is the sandbox's.
fn file_of(namespace: &Namespace, joined: &Joined<'_>) -> Option<&'static str> {
    let name = match namespace.kind.as_str() {
        "ipc" => "ipc",
        "uts" => "uts",
        "pid" => "pid",
        NETWORK => "net",
        USER if joined.users.is_some() => USER,
        _ => return None,
    };
    (namespace.path == format!("/proc/{}/ns/{name}", joined.host_pid)).then_some(name)
}

pub(super) fn foreign(namespace: &Namespace) -> PlanError {
    PlanError::JoinNamespace { kind: harmless(&namespace.kind, 32), path: harmless(&namespace.path, 256) }
}

/// Whether a bind source is the shared memory that the CRI made for the pod, on a tmpfs of the host's. Within a VM its
/// place is taken by the guest's own.
pub(super) fn is_shared_memory(source: &Path, annotations: &BTreeMap<String, String>) -> bool {
    let Some(sandbox) = annotations.get(SANDBOX_ID) else { return false };
    !sandbox.is_empty() && source.ends_with(Path::new("sandboxes").join(sandbox).join("shm"))
}

/// Whether a mount is the shared memory of a pod's container alone, as the CRI gives it where there is no sandbox container
/// that has made the pod's: in a pod it is one for all.
pub(super) fn is_own_shared_memory(
    kind: &str,
    destination: &str,
    annotations: &BTreeMap<String, String>,
) -> bool {
    let in_pod = annotations.get(SANDBOX_ID).is_some_and(|sandbox| !sandbox.is_empty());
    in_pod && kind == "tmpfs" && destination.trim_end_matches('/') == "/dev/shm"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn annotations(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    static NO_SYSCTLS: BTreeMap<String, String> = BTreeMap::new();

    const JOINED: Joined<'static> = Joined {
        share_prefix: "c1-",
        host_pid: 700,
        guest_pid: Some(60),
        network: None,
        own_processes: false,
        sysctls: &NO_SYSCTLS,
        users: None,
    };

    #[test]
    fn container_of_a_pod_gets_its_sysctls_beside_its_own() {
        let sysctls = annotations(&[("net.core.somaxconn", "1"), ("kernel.shmmax", "2")]);
        let mut document = json!({"linux": {"sysctl": {"kernel.shmmax": "3"}}});
        add_sysctls(&mut document, &Joined { sysctls: &sysctls, ..JOINED });
        assert_eq!(document["linux"]["sysctl"], json!({"net.core.somaxconn": "1", "kernel.shmmax": "3"}));
    }

    fn joined(kind: &str, path: &str, joined: &Joined<'_>) -> Result<Value, PlanError> {
        let mut document = json!({"linux": {"namespaces": [{"type": kind, "path": path}]}});
        let namespaces = [Namespace { kind: kind.into(), path: path.into() }];
        join_namespaces(&mut document, &namespaces, joined)?;
        Ok(document["linux"]["namespaces"][0]["path"].take())
    }

    #[test]
    fn roles_are_those_of_the_cri() {
        assert_eq!(role(&annotations(&[])), Ok(Role::Alone));
        assert_eq!(role(&annotations(&[(CONTAINER_TYPE, "sandbox"), (SANDBOX_ID, "p")])), Ok(Role::Sandbox));
        let member = annotations(&[(CONTAINER_TYPE, "container"), (SANDBOX_ID, "p")]);
        assert_eq!(role(&member), Ok(Role::Member { sandbox: "p".into() }));
        assert!(role(&annotations(&[(CONTAINER_TYPE, "container")])).is_err());
        assert!(role(&annotations(&[(CONTAINER_TYPE, "vm")])).is_err());
    }

    #[test]
    fn limits_of_the_pod_are_numbers_and_zero_is_none() {
        let given = annotations(&[(MEMORY, "134217728"), (CPU_QUOTA, "0"), (CPU_SHARES, "512")]);
        let resources = resources(&given).unwrap();
        assert_eq!(resources.memory.limit, Some(134_217_728));
        assert_eq!((resources.cpu.quota, resources.cpu.shares), (None, Some(512)));
        let bad = super::resources(&annotations(&[(MEMORY, "128Mi")])).unwrap_err();
        assert_eq!(bad.to_string(), "annotation io.kubernetes.cri.sandbox-memory cannot be \"128Mi\"");
    }

    #[test]
    fn namespace_of_the_sandbox_becomes_the_guests_own() {
        for kind in ["ipc", "uts", "pid"] {
            let path = joined(kind, &format!("/proc/700/ns/{kind}"), &JOINED).unwrap();
            assert_eq!(path, format!("/proc/60/ns/{kind}"));
        }
    }

    #[test]
    fn sandbox_without_a_process_shares_what_is_the_guests_and_processes_of_its_own() {
        let alone = Joined { guest_pid: None, ..JOINED };
        assert_eq!(joined("ipc", "/proc/700/ns/ipc", &alone).unwrap(), "/proc/1/ns/ipc");
        assert_eq!(joined("pid", "/proc/700/ns/pid", &alone).unwrap(), "/run/nacre/process-namespace");
    }

    #[test]
    fn pod_has_the_size_of_its_limits_and_the_cgroup_of_its_driver() {
        let host = HostLimits { cpus: 4, memory_mib: 8192 };
        let limits = PodLimits {
            memory_bytes: 256 << 20,
            cpu_quota_us: 150_000,
            cpu_period_us: 100_000,
            cpu_shares: 0,
        };
        let planned = |parent: &str| {
            let request = PodRequest {
                cgroup_parent: parent.into(),
                limits,
                hostname: "web".into(),
                ..PodRequest::default()
            };
            plan(&"p1".parse().unwrap(), &request, &VmSettings::default(), host).unwrap()
        };
        let path = |parent| planned(parent).cgroup.path;
        assert_eq!((planned("").vcpus, planned("").memory_mib), (2, 320));
        assert!(planned("").needs_file_server() && planned("").hostname == "web");
        assert_eq!(path("/kubepods/burstable/pod1").as_deref(), Some("kubepods/burstable/pod1/p1"));
        assert_eq!(
            path("/kubepods.slice/kubepods-pod1.slice").as_deref(),
            Some("kubepods.slice/kubepods-pod1.slice/cri-containerd-p1.scope")
        );
        assert_eq!(path(""), None);
        let chosen = PodRequest {
            annotations: [("dev.nacre.vcpus", "3"), ("dev.nacre.memory-mib", "100")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..PodRequest::default()
        };
        let chosen = plan(&"p1".parse().unwrap(), &chosen, &VmSettings::default(), host).unwrap();
        assert_eq!((chosen.vcpus, chosen.memory_mib), (3, 100));
    }

    #[test]
    fn processes_of_one_container_cannot_be_told_from_the_sandboxs() {
        let mixed = Joined { own_processes: true, ..JOINED };
        assert!(matches!(joined("pid", "/proc/700/ns/pid", &mixed), Err(PlanError::TargetProcesses)));
        assert!(joined("ipc", "/proc/700/ns/ipc", &mixed).is_ok());
    }

    #[test]
    fn h02_other_namespaces_of_the_host_cannot_be_joined() {
        for (kind, path) in [
            ("ipc", "/proc/1/ns/ipc"),
            ("ipc", "/proc/700/ns/net"),
            ("ipc", "/proc/700/../1/ns/ipc"),
            ("mount", "/proc/700/ns/mnt"),
            ("user", "/proc/700/ns/user"),
            ("network", "/run/netns/other"),
        ] {
            assert!(matches!(joined(kind, path, &JOINED), Err(PlanError::JoinNamespace { .. })), "{path}");
        }
    }

    #[test]
    fn network_of_the_sandbox_may_be_named_by_its_path_or_its_pid() {
        let network = Joined { network: Some(Path::new("/run/netns/a")), ..JOINED };
        assert!(joined("network", "/run/netns/a", &network).is_ok());
        assert!(joined("network", "/proc/700/ns/net", &JOINED).is_ok());
        assert!(joined("network", "/run/netns/b", &network).is_err());
    }

    #[test]
    fn only_the_pods_own_shared_memory_is_the_guests() {
        let of_pod = annotations(&[(SANDBOX_ID, "p1")]);
        let source = |path| is_shared_memory(Path::new(path), &of_pod);
        assert!(source("/run/containerd/io.containerd.grpc.v1.cri/sandboxes/p1/shm"));
        assert!(!source("/run/containerd/io.containerd.grpc.v1.cri/sandboxes/p2/shm"));
        assert!(!source("/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/shm"));
        assert!(!is_shared_memory(Path::new("/x/sandboxes/shm"), &annotations(&[(SANDBOX_ID, "")])));
    }
}
