//! A pod, and what is asked of it and of its containers. All methods panic where the runtime refuses.

use std::path::Path;
use std::time::{Duration, Instant};

use super::wish::namespaces;
use super::{Cri, EXITED, LIMIT, READY, Refusal, Wish};
use crate::sandbox::Outcome;
use nacre_protocol::cri::{
    ContainerId, ContainerStats, ContainerStatsResponse, ContainerStatus, ContainerStatusResponse,
    CreateContainerRequest, Empty, ExecSyncRequest, ExecSyncResponse, LinuxContainerResources,
    PodSandboxConfig, PodSandboxId, PodSandboxStats, PodSandboxStatsResponse, PodSandboxStatusRequest,
    PodSandboxStatusResponse, RunPodSandboxRequest, StopContainerRequest, UpdateContainerResourcesRequest,
};

/// A pod of the runtime `nacre`.
pub struct Pod<'a> {
    cri: &'a Cri,
    id: String,
    config: PodSandboxConfig,
}

impl<'a> Pod<'a> {
    /// Runs its sandbox; containers log below `logs`.
    #[track_caller]
    pub fn run(cri: &'a Cri, name: &str, logs: &Path) -> Self {
        Self::run_with(cri, "nacre", name, logs)
    }

    /// The same, with another handler of the runtime.
    #[track_caller]
    pub fn run_with(cri: &'a Cri, handler: &str, name: &str, logs: &Path) -> Self {
        Self::run_config(cri, handler, pod_config(name, logs))
    }

    /// The same, with a configuration of its own.
    #[track_caller]
    pub fn run_config(cri: &'a Cri, handler: &str, config: PodSandboxConfig) -> Self {
        match Self::try_run(cri, handler, config) {
            Ok(pod) => pod,
            Err(Refusal { status, message }) => panic!("RunPodSandbox: {message} (status {status})"),
        }
    }

    /// The same, where it may be refused.
    ///
    /// # Errors
    /// [`Refusal`] with what the runtime says.
    pub fn try_run(cri: &'a Cri, handler: &str, config: PodSandboxConfig) -> Result<Self, Refusal> {
        std::fs::create_dir_all(&config.log_directory).expect("a directory for logs");
        let mut request = RunPodSandboxRequest::new();
        request.config = Some(config.clone()).into();
        request.runtime_handler = handler.into();
        let id: PodSandboxId = cri.call("RunPodSandbox", &request)?;
        Ok(Self { cri, id: id.pod_sandbox_id, config })
    }

    /// A pod that runs already.
    pub fn again(cri: &'a Cri, id: &str, name: &str, logs: &Path) -> Self {
        Self { cri, id: id.to_owned(), config: pod_config(name, logs) }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The runtime it is in.
    pub fn cri(&self) -> &'a Cri {
        self.cri
    }

    /// What is known of it.
    #[track_caller]
    pub fn describe(&self, verbose: bool) -> PodSandboxStatusResponse {
        let pod_sandbox_id = self.id.clone();
        let request = PodSandboxStatusRequest { pod_sandbox_id, verbose, ..Default::default() };
        self.cri.must("PodSandboxStatus", &request)
    }

    /// Its address.
    #[track_caller]
    pub fn address(&self) -> String {
        self.describe(false).status.network.ip.clone()
    }

    /// Whether its sandbox is ready.
    #[track_caller]
    pub fn is_ready(&self) -> bool {
        self.describe(false).status.state == READY
    }

    /// Waits until it is not.
    #[track_caller]
    pub fn wait_until_not_ready(&self) {
        wait_for("the pod not to be ready", || !self.is_ready());
    }

    /// Creates and starts a container; its id.
    #[track_caller]
    pub fn start(&self, name: &str, wish: Wish) -> String {
        let id = self.create(name, wish);
        let _: Empty = self.cri.must("StartContainer", &named(&id));
        id
    }

    /// Creates a container; its id.
    #[track_caller]
    pub fn create(&self, name: &str, wish: Wish) -> String {
        match self.try_create(name, wish) {
            Ok(id) => id,
            Err(Refusal { status, message }) => panic!("CreateContainer: {message} (status {status})"),
        }
    }

    /// The same, where it may be refused.
    ///
    /// # Errors
    /// [`Refusal`] with what the runtime says.
    pub fn try_create(&self, name: &str, wish: Wish) -> Result<String, Refusal> {
        let mut request = CreateContainerRequest::new();
        request.pod_sandbox_id = self.id.clone();
        request.sandbox_config = Some(self.config.clone()).into();
        let mut config = wish.0;
        let metadata = config.metadata.mut_or_insert_default();
        metadata.name = name.to_owned();
        config.log_path = format!("{name}-{}.log", metadata.attempt);
        // That of an earlier container of the name, which a kubelet removes with it.
        let log = Path::new(&self.config.log_directory).join(&config.log_path);
        request.config = Some(config).into();
        let id: ContainerId = self.cri.call("CreateContainer", &request)?;
        let _ = std::fs::remove_file(log);
        Ok(id.container_id)
    }

    /// Creates a container whose start must be refused: its id, and why.
    #[track_caller]
    pub fn start_refused(&self, name: &str, wish: Wish) -> (String, Refusal) {
        let id = self.create(name, wish);
        let refusal = self.cri.refuses("StartContainer", &named(&id));
        (id, refusal)
    }

    /// Runs a container to its end and removes it: its last status, and its log.
    #[track_caller]
    pub fn run_to_end(&self, name: &str, wish: Wish) -> (ContainerStatus, String) {
        let id = self.start(name, wish);
        let ended = self.wait(&id);
        let log = self.log(name, ended.metadata.attempt);
        self.remove(&id);
        (ended, log)
    }

    /// Runs a command in a container, to its end.
    #[track_caller]
    pub fn exec(&self, container: &str, command: &[&str]) -> Outcome {
        match self.try_exec(container, command, 0) {
            Ok(outcome) => outcome,
            Err(Refusal { status, message }) => panic!("ExecSync: {message} (status {status})"),
        }
    }

    /// The same with a shell script.
    #[track_caller]
    pub fn sh(&self, container: &str, script: &str) -> Outcome {
        self.exec(container, &["sh", "-c", script])
    }

    /// Runs a command in a container, for at most so many seconds (0: without end).
    ///
    /// # Errors
    /// [`Refusal`] with what the runtime says.
    pub fn try_exec(&self, container: &str, command: &[&str], seconds: i64) -> Result<Outcome, Refusal> {
        let mut request = ExecSyncRequest::new();
        request.container_id = container.to_owned();
        request.cmd = command.iter().map(|word| (*word).to_owned()).collect();
        request.timeout = seconds;
        let reply: ExecSyncResponse = self.cri.call("ExecSync", &request)?;
        Ok(Outcome {
            status: reply.exit_code,
            stdout: String::from_utf8_lossy(&reply.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&reply.stderr).into_owned(),
        })
    }

    /// What is known of a container.
    #[track_caller]
    pub fn status(&self, container: &str) -> ContainerStatus {
        let mut reply: ContainerStatusResponse = self.cri.must("ContainerStatus", &named(container));
        reply.status.take().unwrap_or_default()
    }

    /// Waits for the end of a container.
    #[track_caller]
    pub fn wait(&self, container: &str) -> ContainerStatus {
        wait_for("the end of a container", || self.status(container).state == EXITED);
        self.status(container)
    }

    /// The figures of a container.
    #[track_caller]
    pub fn stats(&self, container: &str) -> ContainerStats {
        let mut reply: ContainerStatsResponse = self.cri.must("ContainerStats", &named(container));
        reply.stats.take().unwrap_or_default()
    }

    /// The figures of the pod.
    #[track_caller]
    pub fn pod_stats(&self) -> PodSandboxStats {
        let mut reply: PodSandboxStatsResponse = self.cri.must("PodSandboxStats", &self.name());
        reply.stats.take().unwrap_or_default()
    }

    /// Changes the limits of a container.
    #[track_caller]
    pub fn update(&self, container: &str, limits: LinuxContainerResources) {
        let mut request = UpdateContainerResourcesRequest::new();
        request.container_id = container.to_owned();
        request.linux = Some(limits).into();
        let _: Empty = self.cri.must("UpdateContainerResources", &request);
    }

    /// Ends a container, with so many seconds for it to end by itself.
    #[track_caller]
    pub fn stop_within(&self, container: &str, seconds: i64) -> ContainerStatus {
        let container_id = container.to_owned();
        let request = StopContainerRequest { container_id, timeout: seconds, ..Default::default() };
        let _: Empty = self.cri.must("StopContainer", &request);
        self.status(container)
    }

    /// Ends a container, with a second for it to end by itself.
    #[track_caller]
    pub fn stop(&self, container: &str) -> ContainerStatus {
        self.stop_within(container, 1)
    }

    /// Forgets a container, and ends it first where it runs.
    #[track_caller]
    pub fn remove(&self, container: &str) {
        let _: Empty = self.cri.must("RemoveContainer", &named(container));
    }

    /// What a container has logged, in the CRI's form.
    pub fn log(&self, name: &str, attempt: u32) -> String {
        let path = Path::new(&self.config.log_directory).join(format!("{name}-{attempt}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Waits for the last line of a container's log: containerd writes it in its own time, also after it has told the container's end.
    #[track_caller]
    pub fn wait_for_log_end(&self, name: &str, attempt: u32, end: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let log = self.log(name, attempt);
            if log.ends_with(end) {
                return;
            }
            assert!(Instant::now() < deadline, "the log of {name} does not end in {end:?}: {log}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Stops it, and all that is in it.
    #[track_caller]
    pub fn stop_all(&self) {
        let _: Empty = self.cri.must("StopPodSandbox", &self.name());
    }

    /// Stops and removes the pod with all that is in it.
    #[track_caller]
    pub fn end(self) {
        self.stop_all();
        let _: Empty = self.cri.must("RemovePodSandbox", &self.name());
    }

    /// Its id, as requests have it.
    pub fn name(&self) -> PodSandboxId {
        PodSandboxId { pod_sandbox_id: self.id.clone(), ..Default::default() }
    }
}

/// A container's id, as requests have it.
pub fn named(container: &str) -> ContainerId {
    ContainerId { container_id: container.to_owned(), ..Default::default() }
}

/// Waits until something holds.
///
/// # Panics
/// Where it does not, in the time that a call has.
#[track_caller]
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A pod as a kubelet describes it.
pub fn pod_config(name: &str, logs: &Path) -> PodSandboxConfig {
    let mut config = PodSandboxConfig::new();
    let metadata = config.metadata.mut_or_insert_default();
    metadata.name = name.to_owned();
    metadata.uid = format!("uid-{name}");
    metadata.namespace = "default".to_owned();
    config.hostname = name.to_owned();
    config.log_directory = logs.join(name).display().to_string();
    let linux = config.linux.mut_or_insert_default();
    linux.cgroup_parent = format!("/kubepods/{name}");
    linux.security_context.mut_or_insert_default().namespace_options = Some(namespaces()).into();
    config
}
