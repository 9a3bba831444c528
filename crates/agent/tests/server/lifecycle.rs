//! Containers and execs from create to delete, and requests that do not fit.

use std::time::Duration;

use nacre_protocol::rpc::agent::{
    BundleFile, ContainerRequest, CreateExecRequest, Empty, ResizeRequest, SignalRequest, Stdio,
};
use serde_json::{Value, json};
use ttrpc::Code;
use ttrpc::context::with_duration;

use crate::fixture::TestGuest;
use crate::host::{Host, code, context, create_request, fresh_token, left_behind, process, text, unique};

fn exec_request(id: &str, exec: &str, script: &str, stdio: Stdio) -> CreateExecRequest {
    let process: Value = json!({
        "args": ["/bin/sh", "-c", script], "cwd": "/", "user": {"uid": 0, "gid": 0},
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
    });
    CreateExecRequest {
        container_id: unique(id),
        exec_id: exec.to_owned(),
        process_json: serde_json::to_vec(&process).unwrap(),
        stdio: Some(stdio).into(),
        ..Default::default()
    }
}

fn signal(id: &str, exec: &str, number: u32, all: bool) -> SignalRequest {
    SignalRequest {
        container_id: unique(id),
        exec_id: exec.to_owned(),
        signal: number,
        all,
        ..Default::default()
    }
}

fn container(id: &str) -> ContainerRequest {
    ContainerRequest { container_id: unique(id), ..Default::default() }
}

#[tokio::test]
async fn container_runs_with_its_streams_and_leaves_nothing() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let (stdio, mut streams) = host.streams().await;
    let created = host.create("run", &guest.spec("cat; echo oops >&2; exit 7"), stdio).await.unwrap();
    let started = host.agent.start(context(), &process("run", "")).await.unwrap();
    assert_eq!(created.pid, started.pid);
    tokio::io::AsyncWriteExt::write_all(&mut streams.stdin, b"through").await.unwrap();
    tokio::io::AsyncWriteExt::shutdown(&mut streams.stdin).await.unwrap();
    assert_eq!(text(&mut streams.stdout).await, "through");
    assert_eq!(text(&mut streams.stderr).await, "oops\n");
    let ended = host.wait("run", "").await;
    assert_eq!((ended.exit_status, ended.oom_killed), (7, false));
    assert!(ended.exited_at_ns > 0);
    assert_eq!(host.delete("run", "").await.unwrap().exit_status, 7);
    assert_eq!(left_behind(&guest.guest, "run"), [].into());
    assert_eq!(code(host.agent.wait(context(), &process("run", "")).await).0, Code::NOT_FOUND);
}

#[tokio::test]
async fn callers_before_and_after_the_end_learn_the_same() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    host.run("wait", &guest.spec("exec sleep 600")).await;
    let (early, _, late) = tokio::join!(
        host.wait("wait", ""),
        async { host.agent.signal(context(), &signal("wait", "", 9, false)).await.unwrap() },
        host.wait("wait", ""),
    );
    assert_eq!(early.exit_status, 137);
    assert_eq!((&early, &host.wait("wait", "").await), (&late, &late));
    host.delete("wait", "").await.unwrap();
}

#[tokio::test]
async fn exec_runs_in_the_container_and_ends_on_its_own() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    host.run("home", &guest.spec("exec sleep 600")).await;
    let (stdio, mut streams) = host.streams().await;
    host.agent.create_exec(context(), &exec_request("home", "e1", "hostname; exit 3", stdio)).await.unwrap();
    host.agent.start(context(), &process("home", "e1")).await.unwrap();
    assert_eq!(text(&mut streams.stdout).await, "nacre\n");
    assert_eq!(host.wait("home", "e1").await.exit_status, 3);
    assert_eq!(host.delete("home", "e1").await.unwrap().exit_status, 3);
    // The id is free again, the container untouched.
    host.agent.create_exec(context(), &exec_request("home", "e1", "exit 4", Stdio::default())).await.unwrap();
    assert_eq!(
        host.delete("home", "e1").await.unwrap().exit_status,
        137,
        "an exec that never started is killed"
    );
    host.agent.signal(context(), &signal("home", "", 9, true)).await.unwrap();
    assert_eq!(host.wait("home", "").await.exit_status, 137);
    host.delete("home", "").await.unwrap();
}

#[tokio::test]
async fn requests_that_do_not_fit_have_their_codes() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let agent = &host.agent;
    let spec = guest.spec("exec sleep 600");
    assert_eq!(code(agent.start(context(), &process("none", "")).await).0, Code::NOT_FOUND);
    assert_eq!(code(host.create("../x", &spec, Stdio::default()).await).0, Code::INVALID_ARGUMENT);
    host.create("c", &spec, Stdio::default()).await.unwrap();
    assert_eq!(code(host.create("c", &spec, Stdio::default()).await).0, Code::ALREADY_EXISTS);
    agent.start(context(), &process("c", "")).await.unwrap();
    assert_eq!(code(agent.start(context(), &process("c", "")).await).0, Code::FAILED_PRECONDITION);
    assert_eq!(code(host.delete("c", "").await).0, Code::FAILED_PRECONDITION);
    assert_eq!(code(agent.wait(context(), &process("c", "none")).await).0, Code::NOT_FOUND);
    assert_eq!(code(agent.signal(context(), &signal("c", "", 65, false)).await).0, Code::INVALID_ARGUMENT);
    assert_eq!(code(agent.signal(context(), &signal("c", "", 0, true)).await).0, Code::INVALID_ARGUMENT);
    let resize = ResizeRequest { container_id: unique("c"), columns: 80, rows: 24, ..Default::default() };
    assert_eq!(code(agent.resize(context(), &resize).await).0, Code::FAILED_PRECONDITION);
    agent.signal(context(), &signal("c", "", 9, false)).await.unwrap();
    host.wait("c", "").await;
    let (refused, message) = code(agent.signal(context(), &signal("c", "", 15, false)).await);
    assert_eq!((refused, message.as_str()), (Code::NOT_FOUND, "process already finished"));
    let exec = exec_request("c", "e", "true", Stdio::default());
    assert_eq!(code(agent.create_exec(context(), &exec).await).0, Code::NOT_FOUND);
    host.delete("c", "").await.unwrap();
}

#[tokio::test]
async fn failed_creation_says_why_and_frees_the_id() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let mut bad = guest.spec("true");
    bad["process"]["cwd"] = json!("relative");
    let (refused, message) = code(host.create("again", &bad, Stdio::default()).await);
    assert_eq!(refused, Code::INVALID_ARGUMENT, "{message}");
    assert_eq!(left_behind(&guest.guest, "again"), [].into());
    host.run("again", &guest.spec("exit 5")).await;
    assert_eq!(host.wait("again", "").await.exit_status, 5);
    host.delete("again", "").await.unwrap();
}

#[tokio::test]
async fn missing_program_is_not_found_and_leaves_nothing() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let mut spec = guest.spec("");
    spec["process"]["args"] = json!(["no-such-program"]);
    let (refused, message) = code(host.create("lost", &spec, Stdio::default()).await);
    assert_eq!(refused, Code::NOT_FOUND);
    assert!(message.contains(r#"exec: "no-such-program": executable file not found in $PATH"#), "{message}");
    assert_eq!(left_behind(&guest.guest, "lost"), [].into());
}

#[tokio::test]
async fn program_that_cannot_be_executed_is_refused_as_such() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let mut spec = guest.spec("");
    spec["process"]["args"] = json!(["/etc/passwd"]);
    let (refused, message) = code(host.create("data", &spec, Stdio::default()).await);
    assert_eq!(refused, Code::PERMISSION_DENIED, "{message}");
    // A file that may be executed and is no program shows at the start.
    let script = guest.image("tmp/data");
    std::fs::write(&script, b"\x01\x02\x03").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    spec["process"]["args"] = json!(["/tmp/data"]);
    host.create("data", &spec, Stdio::default()).await.unwrap();
    let (refused, message) = code(host.agent.start(context(), &process("data", "")).await);
    assert_eq!(refused, Code::PERMISSION_DENIED, "{message}");
    assert_eq!(host.wait("data", "").await.exit_status, 126);
    host.delete("data", "").await.unwrap();
}

#[tokio::test]
async fn container_that_never_started_is_deleted() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    host.create("idle", &guest.spec("true"), Stdio::default()).await.unwrap();
    host.delete("idle", "").await.unwrap();
    assert_eq!(left_behind(&guest.guest, "idle"), [].into());
}

#[tokio::test]
async fn processes_are_listed_frozen_and_thawed() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    host.run("cold", &guest.spec("sleep 600 & exec sleep 601")).await;
    let count = async || host.agent.list_processes(context(), &container("cold")).await.unwrap().pids.len();
    while count().await < 2 {
        tokio::task::yield_now().await;
    }
    host.agent.freeze(context(), &container("cold")).await.unwrap();
    // Frozen processes cannot end of a signal that they would handle, but SIGKILL reaches them.
    host.agent.thaw(context(), &container("cold")).await.unwrap();
    host.agent.freeze(context(), &container("cold")).await.unwrap();
    host.agent.signal(context(), &signal("cold", "", 9, true)).await.unwrap();
    assert_eq!(host.wait("cold", "").await.exit_status, 137);
    host.delete("cold", "").await.unwrap();
}

#[tokio::test]
async fn files_of_the_request_reach_the_container_and_bad_ones_are_refused() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let mut spec = guest.spec("cat /etc/hosts");
    let mount = json!({"destination": "/etc/hosts", "type": "bind", "source": "/run/nacre/files/m0", "options": ["rbind"]});
    spec["mounts"].as_array_mut().unwrap().push(mount);
    let file = |name: &str| BundleFile {
        name: name.to_owned(),
        content: b"192.0.2.1 pearl\n".to_vec(),
        mode: 0o644,
        ..Default::default()
    };
    let mut bad = create_request("files", &spec, Stdio::default());
    bad.files = vec![file("../m0")];
    let refused = host.agent.create_container(context(), &bad).await;
    assert_eq!(code(refused).0, Code::INVALID_ARGUMENT);

    let (stdio, mut streams) = host.streams().await;
    let mut request = create_request("files", &spec, stdio);
    request.files = vec![file("m0")];
    host.agent.create_container(context(), &request).await.unwrap();
    host.agent.start(context(), &process("files", "")).await.unwrap();
    assert_eq!(text(&mut streams.stdout).await, "192.0.2.1 pearl\n");
    host.wait("files", "").await;
    host.delete("files", "").await.unwrap();
    assert_eq!(left_behind(&guest.guest, "files"), [].into());
}

#[tokio::test]
async fn caller_who_gives_up_leaves_a_container_that_can_be_deleted() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    // A stream that has not come yet holds the creation up for as long as the test wants.
    let token = fresh_token();
    let stdio = Stdio { stdout: token.0.to_vec(), ..Default::default() };
    let request = create_request("orphan", &guest.spec("true"), stdio);
    let impatient = with_duration(Duration::from_secs(2));
    host.agent.create_container(impatient, &request).await.unwrap_err();
    assert_eq!(code(host.delete("orphan", "").await).0, Code::FAILED_PRECONDITION, "it is still being made");
    let _stream = host.connect(token).await;
    while let Err(error) = host.delete("orphan", "").await {
        assert_eq!(code::<()>(Err(error)).0, Code::FAILED_PRECONDITION);
        tokio::task::yield_now().await;
    }
    assert_eq!(left_behind(&guest.guest, "orphan"), [].into());
}

#[tokio::test]
async fn shutdown_ends_every_process_and_the_server() {
    let guest = TestGuest::new();
    let mut host = Host::of(guest.guest.clone());
    host.run("last", &guest.spec("trap '' TERM; exec sleep 600")).await;
    let pid = host.agent.list_processes(context(), &container("last")).await.unwrap().pids[0];
    host.agent.shutdown(context(), &Empty::new()).await.unwrap();
    let alive = std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(!alive, "process {pid} outlives the shutdown");
    host.join();
    // The guest is gone now; here its cgroup is left.
    for path in left_behind(&guest.guest, "last") {
        let _ = std::fs::remove_dir(path);
    }
}
