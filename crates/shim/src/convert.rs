//! Types of the Task API to types of the sandbox and back: one of the two edges where types convert.

use std::path::PathBuf;
use std::time::SystemTime;

use containerd_shim_protos::api::{CreateTaskRequest, StateResponse, Status};
use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use nacre_protocol::cri::{IDMapping, POD_SANDBOX_CONFIG, PodSandboxConfig, UserNamespace};
use nacre_protocol::task::{LEAVE_TYPE_URL, Leave, OPTIONS_TYPE_URL, TaskOptions};
use nacre_sandbox::plan::Mount;
use nacre_sandbox::plan::pod::{PodLimits, PodRequest};
use nacre_sandbox::sandbox::{CreateRequest, ProcessId, ProcessStatus};
use nacre_sandbox::state::State;
use nacre_sandbox::stdio::StdioRequest;
use nacre_sandbox::users::{IdMap, IdMapError, IdMaps};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;

/// The CRI's NamespaceMode of what is the host's.
const NODE: i32 = 2;

/// A request that cannot be meant.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConvertError {
    #[error("checkpoints are not supported")]
    Checkpoint,
    #[error("bundle {0:?} is not an absolute path")]
    Bundle(String),
    #[error("options are not valid")]
    Options(#[source] serde_json::Error),
    #[error("the request has no {0}")]
    Missing(&'static str),
    #[error("the pod's configuration is not valid")]
    Pod(#[source] protobuf::Error),
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    #[error("a pod with {0} is not supported by the sandboxer \"shim\"; use \"podsandbox\"")]
    Unsupported(&'static str),
}

/// A pod to make, from the CRI's configuration of it. Its port mappings and DNS are the caller's to set up.
pub(crate) fn pod_request(request: CreateSandboxRequest) -> Result<PodRequest, ConvertError> {
    if !request.rootfs.is_empty() {
        return Err(ConvertError::Unsupported("a root file system of its own"));
    }
    let config = match request.options.as_ref() {
        Some(any) if any.type_url.rsplit('/').next() == Some(POD_SANDBOX_CONFIG) => {
            PodSandboxConfig::parse_from_bytes(&any.value).map_err(ConvertError::Pod)?
        }
        // Another caller than the CRI: a pod of the default size.
        _ => PodSandboxConfig::default(),
    };
    let linux = config.linux.unwrap_or_default();
    let namespaces = linux.security_context.namespace_options.clone().unwrap_or_default();
    if [namespaces.network, namespaces.pid, namespaces.ipc].contains(&NODE) {
        return Err(ConvertError::Unsupported("namespaces of the host"));
    }
    // Without the pod's overhead, as the annotations of a pause container have it: that is for what is around the guest's memory.
    let resources = linux.resources.unwrap_or_default();
    Ok(PodRequest {
        hostname: config.hostname,
        cgroup_parent: linux.cgroup_parent,
        network: Some(request.netns_path).filter(|path| !path.is_empty()).map(PathBuf::from),
        limits: PodLimits {
            memory_bytes: resources.memory_limit_in_bytes,
            cpu_quota_us: resources.cpu_quota,
            cpu_period_us: resources.cpu_period,
            cpu_shares: resources.cpu_shares,
        },
        annotations: request.annotations.into_iter().collect(),
        sysctls: linux.sysctls.into_iter().collect(),
        users: users(namespaces.userns_options.into_option())?,
    })
}

/// The ids of a pod in a user namespace.
fn users(options: Option<UserNamespace>) -> Result<Option<IdMaps>, IdMapError> {
    let Some(options) = options.filter(|options| options.mode != NODE) else { return Ok(None) };
    let map = |map: IDMapping| IdMap { container: map.container_id, host: map.host_id, size: map.length };
    IdMaps::new(options.uids.into_iter().map(map).collect(), options.gids.into_iter().map(map).collect())
}

/// A container to make.
pub(crate) fn create_request(request: CreateTaskRequest) -> Result<CreateRequest, ConvertError> {
    if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
        return Err(ConvertError::Checkpoint);
    }
    let bundle = PathBuf::from(&request.bundle);
    if !bundle.is_absolute() {
        return Err(ConvertError::Bundle(request.bundle));
    }
    let options = task_options(request.options.as_ref())?;
    let mount = |mount: containerd_shim_protos::api::Mount| Mount {
        kind: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    Ok(CreateRequest {
        id: request.id,
        bundle,
        rootfs: request.rootfs.into_iter().map(mount).collect(),
        stdio: StdioRequest {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        },
        on_exit: options.on_exit,
        late_links: !options.no_links,
    })
}

/// Our own options; those for runc say nothing here, the path of its binary least of all (H02).
fn task_options(options: Option<&Any>) -> Result<TaskOptions, ConvertError> {
    match options {
        Some(any) if any.type_url == OPTIONS_TYPE_URL => {
            serde_json::from_slice(&any.value).map_err(ConvertError::Options)
        }
        _ => Ok(TaskOptions::default()),
    }
}

/// The departure of a caller, where an update is that.
pub(crate) fn leave(resources: Option<&Any>) -> Result<Option<Leave>, ConvertError> {
    match resources {
        Some(any) if any.type_url == LEAVE_TYPE_URL => {
            serde_json::from_slice(&any.value).map(Some).map_err(ConvertError::Options)
        }
        _ => Ok(None),
    }
}

/// The JSON that containerd wraps into an Any.
pub(crate) fn json(any: Option<&Any>, what: &'static str) -> Result<Vec<u8>, ConvertError> {
    any.map(|any| any.value.clone()).filter(|value| !value.is_empty()).ok_or(ConvertError::Missing(what))
}

/// Names a process.
pub(crate) fn process_id(id: String, exec_id: String) -> ProcessId {
    ProcessId { container: id, exec: exec_id }
}

/// What is known of a process.
pub(crate) fn state_response(id: ProcessId, status: ProcessStatus) -> StateResponse {
    StateResponse {
        id: id.container,
        exec_id: id.exec,
        bundle: status.bundle.to_string_lossy().into_owned(),
        pid: status.pid,
        status: task_status(status.state).into(),
        stdin: status.stdio.stdin,
        stdout: status.stdio.stdout,
        stderr: status.stdio.stderr,
        terminal: status.stdio.terminal,
        exit_status: status.exit.as_ref().map_or(0, |exit| exit.status),
        exited_at: status.exit.map(|exit| timestamp(exit.at)).into(),
        ..StateResponse::default()
    }
}

fn task_status(state: State) -> Status {
    match state {
        State::Created => Status::CREATED,
        State::Running => Status::RUNNING,
        State::Paused => Status::PAUSED,
        State::Stopped | State::Deleted => Status::STOPPED,
    }
}

/// A moment.
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocol::task::OnExit;

    fn request(type_url: &str, value: &str) -> CreateTaskRequest {
        let options = Any { type_url: type_url.into(), value: value.as_bytes().to_vec(), ..Any::default() };
        CreateTaskRequest {
            id: "web".into(),
            bundle: "/bundle".into(),
            options: Some(options).into(),
            ..CreateTaskRequest::default()
        }
    }

    #[test]
    fn own_options_are_read() {
        let created = create_request(request(OPTIONS_TYPE_URL, r#"{"on_exit":"remove"}"#)).unwrap();
        assert_eq!(created.on_exit, OnExit::Remove);
        assert!(create_request(request(OPTIONS_TYPE_URL, r#"{"binary":"/x"}"#)).is_err());
    }

    #[test]
    fn update_that_is_a_departure_is_told_from_one_of_limits() {
        let any =
            |url: &str, value: &str| Any { type_url: url.into(), value: value.into(), ..Any::default() };
        let left =
            leave(Some(&any(LEAVE_TYPE_URL, r#"{"exec_id":"x","on_exit":"remove"}"#))).unwrap().unwrap();
        assert_eq!((left.exec_id.as_str(), left.output.as_str(), left.on_exit), ("x", "", OnExit::Remove));
        assert!(leave(Some(&any(LEAVE_TYPE_URL, r#"{"binary":"/x"}"#))).is_err());
        let limits = any("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", "{}");
        assert_eq!((leave(Some(&limits)).unwrap(), leave(None).unwrap()), (None, None));
    }

    #[test]
    fn h02_options_for_runc_change_nothing() {
        let created = create_request(request("containerd.runc.v1.Options", "\u{32}\u{4}/x/y")).unwrap();
        assert_eq!(created.on_exit, OnExit::Wait);
    }

    #[test]
    fn relative_bundle_and_checkpoints_are_refused() {
        let mut relative = request("", "");
        relative.bundle = "bundle".into();
        assert!(matches!(create_request(relative), Err(ConvertError::Bundle(_))));
        let mut restore = request("", "");
        restore.checkpoint = "/checkpoint".into();
        assert!(matches!(create_request(restore), Err(ConvertError::Checkpoint)));
    }

    fn pod(change: impl FnOnce(&mut PodSandboxConfig)) -> Result<PodRequest, ConvertError> {
        let mut config = PodSandboxConfig { hostname: "web".into(), ..PodSandboxConfig::default() };
        let linux = config.linux.mut_or_insert_default();
        linux.cgroup_parent = "/kubepods/pod1".into();
        linux.resources.mut_or_insert_default().memory_limit_in_bytes = 128 << 20;
        linux.overhead.mut_or_insert_default().memory_limit_in_bytes = 32 << 20;
        change(&mut config);
        let value = config.write_to_bytes().unwrap();
        let options = Any { type_url: POD_SANDBOX_CONFIG.into(), value, ..Any::default() };
        pod_request(CreateSandboxRequest {
            netns_path: "/run/netns/x".into(),
            options: Some(options).into(),
            ..CreateSandboxRequest::default()
        })
    }

    #[test]
    fn pod_has_its_limits_without_the_overhead_and_its_network() {
        let pod = pod(|_| ()).unwrap();
        assert_eq!((pod.limits.memory_bytes, pod.limits.cpu_quota_us), (128 << 20, 0));
        assert_eq!((pod.hostname.as_str(), pod.cgroup_parent.as_str()), ("web", "/kubepods/pod1"));
        assert_eq!(pod.network, Some("/run/netns/x".into()));
    }

    #[test]
    fn pod_has_its_sysctls() {
        let pod = pod(|config| {
            config.linux.mut_or_insert_default().sysctls.insert("net.core.somaxconn".into(), "1".into());
        });
        assert_eq!(pod.unwrap().sysctls["net.core.somaxconn"], "1");
    }

    #[test]
    fn pod_that_cannot_be_is_refused_in_words() {
        let host = |config: &mut PodSandboxConfig| {
            let security = config.linux.mut_or_insert_default().security_context.mut_or_insert_default();
            security.namespace_options.mut_or_insert_default().pid = NODE;
        };
        assert!(matches!(pod(host), Err(ConvertError::Unsupported(_))));
        let options = Any { type_url: POD_SANDBOX_CONFIG.into(), value: vec![0xff; 9], ..Any::default() };
        let request =
            CreateSandboxRequest { options: Some(options).into(), ..CreateSandboxRequest::default() };
        assert!(matches!(pod_request(request), Err(ConvertError::Pod(_))));
    }
}
