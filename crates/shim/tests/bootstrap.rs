//! The shim as containerd starts, finds, ends and outlives it. No VM is started.
#![expect(clippy::unwrap_used, reason = "a test: its helpers too")]

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use containerd_shim_protos::api::{
    ConnectRequest, CreateTaskRequest, DeleteResponse, ShutdownRequest, StateRequest,
};
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest,
    ShutdownSandboxRequest, StartSandboxRequest,
};
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::{Code, Error, context};
use protobuf::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

/// Longest wait for a process that is about to end.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// A bundle, and the id of a sandbox that no other test has.
struct Bundle {
    dir: TempDir,
    id: String,
}

impl Bundle {
    fn new(name: &str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), id: format!("test-{name}-{}", std::process::id()) }
    }

    fn command(&self, action: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_containerd-shim-nacre-v2"));
        command.args([
            "-namespace",
            "nacre-test",
            "-address",
            "",
            "-publish-binary",
            "",
            "-id",
            &self.id,
            action,
        ]);
        command.current_dir(self.dir.path()).env_remove("TTRPC_ADDRESS").env_remove("MAX_SHIM_VERSION");
        command
    }

    fn start(&self) -> Output {
        self.command("start").output().unwrap()
    }

    fn address(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("address")).unwrap()
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from(self.address().strip_prefix("unix://").unwrap())
    }

    async fn connect(&self) -> TaskClient {
        TaskClient::new(Client::connect(&self.address()).await.unwrap())
    }

    async fn shim_pid(&self, client: &TaskClient) -> Pid {
        let request = ConnectRequest { id: self.id.clone(), ..ConnectRequest::default() };
        let reply = client.connect(soon(), &request).await.unwrap();
        Pid::from_raw(reply.shim_pid.cast_signed()).unwrap()
    }

    async fn shutdown(&self, client: &TaskClient) {
        let request = ShutdownRequest { id: self.id.clone(), ..ShutdownRequest::default() };
        client.shutdown(soon(), &request).await.unwrap();
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Ends what a failed test left.
        let _ = self.command("delete").output();
    }
}

fn soon() -> context::Context {
    context::with_duration(Duration::from_secs(20))
}

/// Waits until a process that is not our child has ended.
fn wait_for_end(pid: Pid, act: impl FnOnce()) {
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    act();
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&PATIENCE)).unwrap();
    assert_eq!(ended, 1, "the shim does not end");
}

#[tokio::test]
async fn start_prints_an_address_that_answers_at_once() {
    let bundle = Bundle::new("start");
    let output = bundle.start();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), bundle.address());
    assert!(std::fs::metadata(bundle.socket()).unwrap().file_type().is_socket());
    let client = bundle.connect().await;
    let pid = bundle.shim_pid(&client).await;
    let own = i32::try_from(std::process::id()).unwrap();
    assert_ne!(pid.as_raw_nonzero().get(), own);
    bundle.shutdown(&client).await;
}

#[tokio::test]
async fn start_answers_json_where_it_is_read() {
    let bundle = Bundle::new("json");
    let output = bundle.command("start").env("MAX_SHIM_VERSION", "2").output().unwrap();
    let expected = format!(r#"{{"version":2,"address":"{}","protocol":"ttrpc"}}"#, bundle.address());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[tokio::test]
async fn shutdown_of_an_empty_shim_leaves_nothing() {
    let bundle = Bundle::new("shutdown");
    bundle.start();
    let client = bundle.connect().await;
    let pid = bundle.shim_pid(&client).await;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    bundle.shutdown(&client).await;
    assert_eq!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&PATIENCE)).unwrap(), 1);
    assert!(!bundle.socket().exists() && !bundle.socket().with_extension("shim").exists());
}

#[tokio::test]
async fn sigterm_ends_the_shim_and_leaves_nothing() {
    let bundle = Bundle::new("sigterm");
    bundle.start();
    let client = bundle.connect().await;
    let pid = bundle.shim_pid(&client).await;
    wait_for_end(pid, || kill_process(pid, Signal::TERM).unwrap());
    assert!(!bundle.socket().exists());
}

#[tokio::test]
async fn second_shim_of_the_same_sandbox_is_refused() {
    let bundle = Bundle::new("twice");
    bundle.start();
    let again = bundle.start();
    assert!(!again.status.success());
    let text = String::from_utf8(again.stderr).unwrap();
    assert!(text.contains("is running"), "{text}");
}

#[tokio::test]
async fn delete_after_a_killed_shim_cleans_up_and_tells_137() {
    let bundle = Bundle::new("killed");
    bundle.start();
    let client = bundle.connect().await;
    let pid = bundle.shim_pid(&client).await;
    wait_for_end(pid, || kill_process(pid, Signal::KILL).unwrap());
    assert!(bundle.socket().exists());
    let output = bundle.command("delete").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(DeleteResponse::parse_from_bytes(&output.stdout).unwrap().exit_status, 137);
    assert!(!bundle.socket().exists());
}

#[tokio::test]
async fn delete_ends_a_shim_that_has_no_container() {
    let bundle = Bundle::new("idle");
    bundle.start();
    let pid = bundle.shim_pid(&bundle.connect().await).await;
    wait_for_end(pid, || assert!(bundle.command("delete").status().unwrap().success()));
    assert!(!bundle.socket().exists() && !bundle.socket().with_extension("shim").exists());
}

#[tokio::test]
async fn delete_of_what_never_was_succeeds() {
    let output = Bundle::new("never").command("delete").output().unwrap();
    assert!(output.status.success());
    assert_eq!(DeleteResponse::parse_from_bytes(&output.stdout).unwrap().exit_status, 137);
}

#[tokio::test]
async fn requests_for_unknown_containers_are_not_found() {
    let bundle = Bundle::new("unknown");
    bundle.start();
    let client = bundle.connect().await;
    let request = StateRequest { id: "other".into(), ..StateRequest::default() };
    let Err(Error::RpcStatus(status)) = client.state(soon(), &request).await else { panic!("no status") };
    assert_eq!(status.code(), Code::NOT_FOUND);
    bundle.shutdown(&client).await;
}

#[tokio::test]
async fn create_without_a_configuration_names_the_file_and_the_shim_lives_on() {
    let bundle = Bundle::new("create");
    bundle.start();
    let client = bundle.connect().await;
    let request = CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: bundle.dir.path().to_str().unwrap().into(),
        ..CreateTaskRequest::default()
    };
    let Err(Error::RpcStatus(status)) = client.create(soon(), &request).await else { panic!("no status") };
    assert_eq!(status.code(), Code::INVALID_ARGUMENT);
    let config = bundle.dir.path().join("config.json");
    assert!(status.message.contains(config.to_str().unwrap()), "{}", status.message);
    bundle.shutdown(&client).await;
}

/// The code of a refusal.
fn code<T>(answer: Result<T, Error>) -> Code {
    match answer {
        Err(Error::RpcStatus(status)) => status.code(),
        Err(error) => panic!("no status: {error}"),
        Ok(_) => panic!("no refusal"),
    }
}

#[tokio::test]
async fn sandbox_api_answers_before_there_is_a_sandbox_and_is_for_one_alone() {
    let bundle = Bundle::new("sandbox-api");
    bundle.start();
    let task = bundle.connect().await;
    let sandbox = SandboxClient::new(Client::connect(&bundle.address()).await.unwrap());
    let sandbox_id = bundle.id.clone();

    let platform = PlatformRequest { sandbox_id: sandbox_id.clone(), ..PlatformRequest::default() };
    let platform = sandbox.platform(soon(), &platform).await.unwrap().platform;
    assert_eq!((platform.os.as_str(), platform.architecture.as_str()), ("linux", "amd64"));
    let ping = PingRequest { sandbox_id: sandbox_id.clone(), ..PingRequest::default() };
    sandbox.ping_sandbox(soon(), &ping).await.unwrap();

    let start = StartSandboxRequest { sandbox_id: sandbox_id.clone(), ..StartSandboxRequest::default() };
    assert_eq!(code(sandbox.start_sandbox(soon(), &start).await), Code::FAILED_PRECONDITION);
    let status = SandboxStatusRequest { sandbox_id: sandbox_id.clone(), ..SandboxStatusRequest::default() };
    assert_eq!(code(sandbox.sandbox_status(soon(), &status).await), Code::NOT_FOUND);
    let metrics =
        SandboxMetricsRequest { sandbox_id: sandbox_id.clone(), ..SandboxMetricsRequest::default() };
    assert_eq!(code(sandbox.sandbox_metrics(soon(), &metrics).await), Code::NOT_FOUND);

    let create = CreateSandboxRequest { sandbox_id: sandbox_id.clone(), ..CreateSandboxRequest::default() };
    sandbox.create_sandbox(soon(), &create).await.unwrap();
    assert_eq!(code(sandbox.create_sandbox(soon(), &create).await), Code::ALREADY_EXISTS);
    let foreign = CreateSandboxRequest { sandbox_id: "other".into(), ..CreateSandboxRequest::default() };
    assert_eq!(code(sandbox.create_sandbox(soon(), &foreign).await), Code::NOT_FOUND);

    let pid = bundle.shim_pid(&task).await;
    let shutdown = ShutdownSandboxRequest { sandbox_id, ..ShutdownSandboxRequest::default() };
    sandbox.shutdown_sandbox(soon(), &shutdown).await.unwrap();
    wait_for_end(pid, || ());
    assert!(!bundle.socket().exists());
}

#[test]
fn h01_shim_has_no_abstract_socket() {
    let bundle = Bundle::new("abstract");
    bundle.start();
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let paths = sockets.lines().filter_map(|line| line.split_whitespace().nth(7));
    let ours: Vec<_> = paths.filter(|path| path.contains("nacre")).collect();
    assert!(ours.iter().any(|path| Path::new(path) == bundle.socket()), "{ours:?}");
    assert!(ours.iter().all(|path| path.starts_with('/')), "{ours:?}");
}

#[test]
fn version_is_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_containerd-shim-nacre-v2")).arg("-v").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.trim(), format!("containerd-shim-nacre-v2: {}", env!("CARGO_PKG_VERSION")));
}
