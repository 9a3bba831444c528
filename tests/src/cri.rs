//! A client of the Container Runtime Interface, which calls a runtime as a kubelet does: gRPC over a Unix socket, one call
//! at a time.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use protobuf::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::containerd::IMAGE;
use crate::sandbox::Outcome;
use nacre_protocol::cri::{
    ContainerConfig, ContainerId, ContainerStats, ContainerStatsResponse, ContainerStatus,
    ContainerStatusResponse, CreateContainerRequest, Device, Empty, ExecSyncRequest, ExecSyncResponse,
    ImageSpec, LinuxContainerResources, LinuxContainerSecurityContext, Mount, NamespaceOption,
    PodSandboxConfig, PodSandboxId, PodSandboxStatusResponse, RunPodSandboxRequest, StatusRequest,
    StatusResponse, StopContainerRequest, UpdateContainerResourcesRequest,
};

/// For a call on an emulated machine under load.
const LIMIT: Duration = Duration::from_secs(240);

/// SANDBOX_READY.
const READY: i32 = 0;

/// CONTAINER_EXITED.
const EXITED: i32 = 2;

/// NamespaceMode.
const OF_POD: i32 = 0;
const OF_CONTAINER: i32 = 1;

/// Longest reply.
const MAX_REPLY: usize = 16 << 20;

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// gRPC's status; -1 where the call did not get that far.
    pub status: i32,
    /// Why.
    pub message: String,
}

/// A connection to a runtime.
pub struct Cri {
    runtime: Runtime,
    connection: SendRequest<Bytes>,
}

impl Cri {
    /// Connects to the socket.
    ///
    /// # Errors
    /// [`Refusal`] where nobody listens there.
    ///
    /// # Panics
    /// Where no runtime can be made.
    pub fn connect(socket: &Path) -> Result<Self, Refusal> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let connection = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.map_err(|error| refused(&error))?;
            let (client, connection) =
                h2::client::handshake(stream).await.map_err(|error| refused(&error))?;
            // Ends with its client.
            tokio::spawn(connection);
            Ok(client)
        })?;
        Ok(Self { runtime, connection })
    }

    /// Calls a method of the runtime service.
    ///
    /// # Errors
    /// [`Refusal`] with what the runtime says.
    pub fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Result<A, Refusal> {
        let path = format!("http://localhost/runtime.v1.RuntimeService/{method}");
        let bytes = request.write_to_bytes().map_err(|error| refused(&error))?;
        let exchange = exchange(self.connection.clone(), path, bytes);
        let reply = self.runtime.block_on(async { tokio::time::timeout(LIMIT, exchange).await });
        let reply = reply.map_err(|_| {
            let message = format!("{method} was not answered within {} s", LIMIT.as_secs());
            Refusal { status: -1, message }
        })??;
        A::parse_from_bytes(&reply).map_err(|error| refused(&error))
    }
}

fn refused(error: &dyn std::error::Error) -> Refusal {
    Refusal { status: -1, message: error.to_string() }
}

/// One unary call (gRPC over HTTP2): a length-prefixed message each way, and the status in the trailers.
async fn exchange(client: SendRequest<Bytes>, path: String, message: Vec<u8>) -> Result<Bytes, Refusal> {
    let failed = |error: h2::Error| refused(&error);
    let request = Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|error| refused(&error))?;
    let (response, mut body) =
        client.ready().await.map_err(failed)?.send_request(request, false).map_err(failed)?;
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).map_err(|error| refused(&error))?);
    frame.put_slice(&message);
    body.send_data(frame.freeze(), true).map_err(failed)?;

    let response = response.await.map_err(failed)?;
    check(response.headers())?;
    let mut body = response.into_body();
    let mut reply = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(failed)?;
        let _ = body.flow_control().release_capacity(data.len());
        reply.extend_from_slice(&data);
        if reply.len() > MAX_REPLY {
            return Err(Refusal { status: -1, message: "the reply is too long".into() });
        }
    }
    if let Some(trailers) = body.trailers().await.map_err(failed)? {
        check(&trailers)?;
    }
    if reply.len() < 5 {
        return Err(Refusal { status: -1, message: "the reply is too short".into() });
    }
    reply.advance(5);
    Ok(reply.freeze())
}

fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(|status| status.parse().unwrap_or(-1)) {
        None | Some(0) => Ok(()),
        Some(status) => Err(Refusal { status, message: text("grpc-message").unwrap_or_default().to_owned() }),
    }
}

/// A container to start.
#[derive(Debug, Clone)]
pub struct Wish(ContainerConfig);

impl Wish {
    /// A shell script in the test image, as its only command.
    pub fn sh(script: &str) -> Self {
        let mut config = ContainerConfig::new();
        config.image = Some(ImageSpec { image: IMAGE.to_owned(), ..Default::default() }).into();
        config.command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let security = config.linux.mut_or_insert_default().security_context.mut_or_insert_default();
        security.namespace_options = Some(namespaces()).into();
        Self(config)
    }

    /// With the processes of the whole pod.
    #[must_use]
    pub fn share_processes(mut self) -> Self {
        let security = self.0.linux.mut_or_insert_default().security_context.mut_or_insert_default();
        security.namespace_options.mut_or_insert_default().pid = OF_POD;
        self
    }

    /// With a directory of the host.
    #[must_use]
    pub fn mount(mut self, host: &Path, container: &str) -> Self {
        let (host_path, container_path) = (host.display().to_string(), container.to_owned());
        self.0.mounts.push(Mount { host_path, container_path, ..Default::default() });
        self
    }

    /// With a directory or file of the host that it may not write to.
    #[must_use]
    pub fn mount_read_only(self, host: &Path, container: &str) -> Self {
        let mut wish = self.mount(host, container);
        if let Some(mount) = wish.0.mounts.last_mut() {
            mount.readonly = true;
        }
        wish
    }

    /// With another security context.
    #[must_use]
    pub fn security(mut self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        change(self.0.linux.mut_or_insert_default().security_context.mut_or_insert_default());
        self
    }

    /// With a block device of the host; `permissions` are of `rwm`.
    #[must_use]
    pub fn device(mut self, host: &str, container: &str, permissions: &str) -> Self {
        let (host_path, container_path) = (host.to_owned(), container.to_owned());
        let permissions = permissions.to_owned();
        self.0.devices.push(Device { host_path, container_path, permissions, ..Default::default() });
        self
    }

    /// With a limit of memory, in bytes.
    #[must_use]
    pub fn memory(mut self, bytes: i64) -> Self {
        let linux = self.0.linux.mut_or_insert_default();
        linux.resources.mut_or_insert_default().memory_limit_in_bytes = bytes;
        self
    }

    /// The number of the attempt.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.0.metadata.mut_or_insert_default().attempt = attempt;
        self
    }
}

/// A pod of the runtime `nacre`.
pub struct Pod<'a> {
    cri: &'a Cri,
    id: String,
    config: PodSandboxConfig,
}

impl<'a> Pod<'a> {
    /// Runs its sandbox; containers log below `logs`.
    ///
    /// # Panics
    /// Where the runtime refuses, as all methods here do.
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
        std::fs::create_dir_all(&config.log_directory).expect("a directory for logs");
        let mut request = RunPodSandboxRequest::new();
        request.config = Some(config.clone()).into();
        request.runtime_handler = handler.into();
        let id: PodSandboxId = cri.must("RunPodSandbox", &request);
        Self { cri, id: id.pod_sandbox_id, config }
    }

    /// A pod that runs already.
    pub fn again(cri: &'a Cri, id: &str, name: &str, logs: &Path) -> Self {
        Self { cri, id: id.to_owned(), config: pod_config(name, logs) }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its address.
    #[track_caller]
    pub fn address(&self) -> String {
        let status: PodSandboxStatusResponse = self.cri.must("PodSandboxStatus", &self.name());
        status.status.network.ip.clone()
    }

    /// Whether its sandbox is ready.
    #[track_caller]
    pub fn is_ready(&self) -> bool {
        let status: PodSandboxStatusResponse = self.cri.must("PodSandboxStatus", &self.name());
        status.status.state == READY
    }

    /// Waits until it is not.
    #[track_caller]
    pub fn wait_until_not_ready(&self) {
        let deadline = Instant::now() + LIMIT;
        while self.is_ready() {
            assert!(Instant::now() < deadline, "the pod stays ready");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Creates and starts a container; its id.
    #[track_caller]
    pub fn start(&self, name: &str, wish: Wish) -> String {
        let mut request = CreateContainerRequest::new();
        request.pod_sandbox_id = self.id.clone();
        request.sandbox_config = Some(self.config.clone()).into();
        let mut config = wish.0;
        let metadata = config.metadata.mut_or_insert_default();
        metadata.name = name.to_owned();
        config.log_path = format!("{name}-{}.log", metadata.attempt);
        request.config = Some(config).into();
        let id: ContainerId = self.cri.must("CreateContainer", &request);
        let _: Empty = self.cri.must("StartContainer", &id);
        id.container_id
    }

    /// Runs a command in a container, to its end.
    #[track_caller]
    pub fn exec(&self, container: &str, command: &[&str]) -> Outcome {
        let mut request = ExecSyncRequest::new();
        request.container_id = container.to_owned();
        request.cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let reply: ExecSyncResponse = self.cri.must("ExecSync", &request);
        Outcome {
            status: reply.exit_code,
            stdout: String::from_utf8_lossy(&reply.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&reply.stderr).into_owned(),
        }
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
        let deadline = Instant::now() + LIMIT;
        loop {
            let status = self.status(container);
            if status.state == EXITED {
                return status;
            }
            assert!(Instant::now() < deadline, "container {container} does not end: {status:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The figures of a container.
    #[track_caller]
    pub fn stats(&self, container: &str) -> ContainerStats {
        let mut reply: ContainerStatsResponse = self.cri.must("ContainerStats", &named(container));
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

    /// Forgets a container.
    #[track_caller]
    pub fn remove(&self, container: &str) {
        let _: Empty = self.cri.must("RemoveContainer", &named(container));
    }

    /// What a container has logged, in the CRI's form.
    pub fn log(&self, name: &str, attempt: u32) -> String {
        let path = Path::new(&self.config.log_directory).join(format!("{name}-{attempt}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Stops and removes the pod with all that is in it.
    #[track_caller]
    pub fn end(self) {
        let _: Empty = self.cri.must("StopPodSandbox", &self.name());
        let _: Empty = self.cri.must("RemovePodSandbox", &self.name());
    }

    fn name(&self) -> PodSandboxId {
        PodSandboxId { pod_sandbox_id: self.id.clone(), ..Default::default() }
    }
}

fn named(container: &str) -> ContainerId {
    ContainerId { container_id: container.to_owned(), ..Default::default() }
}

/// What a kubelet asks for by default: processes of the container's own, everything else of the pod's.
fn namespaces() -> NamespaceOption {
    NamespaceOption { network: OF_POD, pid: OF_CONTAINER, ipc: OF_POD, ..Default::default() }
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

impl Cri {
    /// Whether the runtime and its network are ready.
    pub fn is_ready(&self) -> bool {
        let status: Result<StatusResponse, _> = self.call("Status", &StatusRequest::new());
        status.is_ok_and(|reply| {
            let holds =
                |kind| reply.status.conditions.iter().any(|found| found.type_ == kind && found.status);
            holds("RuntimeReady") && holds("NetworkReady")
        })
    }

    #[track_caller]
    fn must<Q: Message, A: Message>(&self, method: &str, request: &Q) -> A {
        match self.call(method, request) {
            Ok(reply) => reply,
            Err(Refusal { status, message }) => panic!("{method}: {message} (status {status})"),
        }
    }
}
