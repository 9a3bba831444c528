//! Containers that misbehave, and bytes on the control connection that are no request.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nacre_protocol::rpc::agent::{ContainerRequest, Stdio};
use ttrpc::Code;

use crate::fixture::TestGuest;
use crate::host::{Host, PATIENCE, code, context, control, process, unique};

/// A ttrpc frame: length, stream, type, flags.
fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes().to_vec();
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(payload);
    bytes
}

/// A protobuf field of type bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(bytes);
    out
}

/// A request to `method` with these bytes as its message.
fn request(method: &str, message: &[u8]) -> Vec<u8> {
    [field(1, b"nacre.agent.v1.Agent"), field(2, method.as_bytes()), field(3, message)].concat()
}

/// Sends a frame and reads the payload of the answer.
fn ask(control: &mut UnixStream, stream: u32, payload: &[u8]) -> Vec<u8> {
    control.set_read_timeout(Some(PATIENCE)).unwrap();
    control.write_all(&frame(stream, 1, payload)).unwrap();
    let mut header = [0; 10];
    control.read_exact(&mut header).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(header[..4].try_into().unwrap()) as usize];
    control.read_exact(&mut answer).unwrap();
    answer
}

#[tokio::test]
async fn a03_deep_and_overlong_messages_are_decode_errors() {
    let guest = TestGuest::new();
    let (mut control, _server) = control(guest.guest.clone(), PATIENCE);
    // Groups within groups, 10 000 deep, in a field that nobody knows.
    let deep = vec![(15 << 3) | 3; 10_000];
    let answer = ask(&mut control, 1, &request("Hello", &deep));
    assert!(!answer.is_empty());
    // A field that claims 2^31 bytes.
    let long = [1 << 3 | 2, 0x80, 0x80, 0x80, 0x80, 0x08];
    let answer = ask(&mut control, 3, &request("Hello", &long));
    assert!(!answer.is_empty());
    // The server still answers.
    let answer = ask(&mut control, 5, &request("Wait", &field(1, b"nobody")));
    assert!(String::from_utf8_lossy(&answer).contains("does not exist"));
}

#[tokio::test]
async fn a03_frame_above_the_limit_is_refused_and_the_next_is_served() {
    let guest = TestGuest::new();
    let (mut control, _server) = control(guest.guest.clone(), PATIENCE);
    let answer = ask(&mut control, 1, &request("CreateContainer", &field(2, &vec![b'x'; 5 << 20])));
    assert!(String::from_utf8_lossy(&answer).contains("exceed"));
    let answer = ask(&mut control, 3, &request("Wait", &field(1, b"nobody")));
    assert!(String::from_utf8_lossy(&answer).contains("does not exist"));
}

#[tokio::test]
async fn c09_overlong_configuration_is_refused() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let mut spec = guest.spec("true");
    spec["annotations"] = serde_json::json!({"long": "x".repeat(3 << 20)});
    let (refused, message) = code(host.create("long", &spec, Stdio::default()).await);
    assert_eq!((refused, message.as_str()), (Code::INVALID_ARGUMENT, "the OCI configuration is too long"));
}

#[tokio::test]
async fn server_returns_when_the_host_is_gone() {
    let guest = TestGuest::new();
    let (control, (_, _, server)) = control(guest.guest.clone(), PATIENCE);
    drop(control);
    let deadline = Instant::now() + PATIENCE;
    while !server.is_finished() {
        assert!(Instant::now() < deadline, "the server goes on without its host");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn fork_storm_in_one_container_does_not_delay_or_confuse_another() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let storm = "while :; do (true &); done";
    host.run("storm", &guest.spec(storm)).await;
    for status in [0, 1, 42, 255] {
        let id = format!("calm{status}");
        host.run(&id, &guest.spec(&format!("exit {status}"))).await;
        assert_eq!(host.wait(&id, "").await.exit_status, status);
        host.delete(&id, "").await.unwrap();
    }
    host.agent
        .signal(
            context(),
            &nacre_protocol::rpc::agent::SignalRequest {
                container_id: unique("storm"),
                signal: 9,
                all: true,
                ..Default::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(host.wait("storm", "").await.exit_status, 137);
    host.delete("storm", "").await.unwrap();
}

#[tokio::test]
async fn output_flood_without_a_reader_leaves_the_server_answering() {
    let guest = TestGuest::new();
    let host = Host::of(guest.guest.clone());
    let mut held = Vec::new();
    for n in 0..4 {
        let (stdio, streams) = host.streams().await;
        held.push(streams);
        let id = format!("flood{n}");
        host.create(&id, &guest.spec("exec cat /dev/zero"), stdio).await.unwrap();
        host.agent.start(context(), &process(&id, "")).await.unwrap();
    }
    let begin = Instant::now();
    for _ in 0..20 {
        let request = ContainerRequest { container_id: unique("flood0"), ..Default::default() };
        host.agent.list_processes(context(), &request).await.unwrap();
    }
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?} for 20 answers", begin.elapsed());
    drop(held);
    for n in 0..4 {
        let id = format!("flood{n}");
        assert_eq!(host.wait(&id, "").await.exit_status, 1, "write error: broken pipe");
        host.delete(&id, "").await.unwrap();
    }
}
