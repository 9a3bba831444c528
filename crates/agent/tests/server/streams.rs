//! Streams of real containers.

use std::time::Duration;

use nacre_protocol::rpc::agent::{ResizeRequest, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::Code;

use crate::fixture::TestGuest;
use crate::host::{Host, code, context, fresh_token, left_behind, process, text, unique};

#[tokio::test]
async fn stream_that_does_not_come_fails_the_creation_and_leaves_nothing() {
    let guest = TestGuest::new();
    let host = Host::with_patience(guest.guest.clone(), Duration::from_millis(300));
    let stdio = Stdio { stdout: fresh_token().0.to_vec(), ..Default::default() };
    let (refused, message) = code(host.create("deaf", &guest.spec("true"), stdio).await);
    assert_eq!(refused, Code::DEADLINE_EXCEEDED);
    assert!(message.contains("stdout"), "{message}");
    assert_eq!(left_behind(&guest.guest, "deaf"), [].into());
}

#[tokio::test]
async fn standard_streams_can_be_opened_by_name_by_another_user() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let (stdio, mut streams) = host.streams().await;
    let mut spec = guest.spec("echo one > /dev/stdout; echo two > /proc/self/fd/2");
    spec["process"]["user"] = serde_json::json!({"uid": 33, "gid": 33});
    host.create("named", &spec, stdio).await.unwrap();
    host.agent.start(context(), &process("named", "")).await.unwrap();
    assert_eq!(text(&mut streams.stdout).await, "one\n");
    assert_eq!(text(&mut streams.stderr).await, "two\n");
    host.wait("named", "").await;
    host.delete("named", "").await.unwrap();
}

#[tokio::test]
async fn large_output_arrives_whole_although_the_process_has_ended() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let (stdio, mut streams) = host.streams().await;
    host.create("big", &guest.spec("head -c 900000 /dev/zero"), stdio).await.unwrap();
    host.agent.start(context(), &process("big", "")).await.unwrap();
    // It fits the pipe, so the process ends although nobody has read.
    assert_eq!(host.wait("big", "").await.exit_status, 0);
    host.delete("big", "").await.unwrap();
    assert_eq!(text(&mut streams.stdout).await.len(), 900_000);
}

#[tokio::test]
async fn reader_that_leaves_ends_the_writer_with_sigpipe() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let (stdio, streams) = host.streams().await;
    host.create("pipe", &guest.spec("cat /dev/zero; exit $?"), stdio).await.unwrap();
    host.agent.start(context(), &process("pipe", "")).await.unwrap();
    drop(streams);
    // Seen from a child of init, since the kernel spares a namespace's init signals that it does not handle.
    assert_eq!(host.wait("pipe", "").await.exit_status, 128 + 13);
    host.delete("pipe", "").await.unwrap();
}

#[tokio::test]
async fn terminal_is_the_containers_own_and_can_be_resized() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let (stdin, stdout) = (fresh_token(), fresh_token());
    let stdio = Stdio {
        terminal: true,
        stdin: stdin.0.to_vec(),
        stdout: stdout.0.to_vec(),
        columns: 100,
        rows: 30,
        ..Default::default()
    };
    let (mut input, mut output) = (host.connect(stdin).await, host.connect(stdout).await);
    let mut spec = guest.spec("tty; stty size; read line; stty size; echo got $line");
    spec["process"]["terminal"] = serde_json::json!(true);
    host.create("tty", &spec, stdio).await.unwrap();
    host.agent.start(context(), &process("tty", "")).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("30 100\r\n") {
        let mut part = [0; 256];
        let length = output.read(&mut part).await.unwrap();
        assert!(length > 0, "ended after {seen:?}");
        seen.push_str(std::str::from_utf8(&part[..length]).unwrap());
    }
    let resize = ResizeRequest { container_id: unique("tty"), columns: 132, rows: 43, ..Default::default() };
    host.agent.resize(context(), &resize).await.unwrap();
    input.write_all(b"this\n").await.unwrap();
    let rest = text(&mut output).await;
    assert!(seen.contains("/dev/pts/0") || seen.contains("/dev/console"), "{seen:?}");
    assert!(rest.contains("43 132") && rest.contains("got this"), "{rest:?}");
    assert_eq!(host.wait("tty", "").await.exit_status, 0);
    host.delete("tty", "").await.unwrap();
}
