//! Exec, attach and port-forward with their streams, through containerd's streaming server.

use nacre_tests::Stay;
use nacre_tests::cri::{Channel, Wish, wait_for};

use super::NODE;

#[test]
fn exec_is_fed_by_stdin_and_ends_with_its_status() {
    exec_with_input(&NODE.share());
}

pub(crate) fn exec_with_input(stay: &Stay<'_>) {
    let pod = stay.pod();
    let id = pod.start("streams", Wish::idle());
    let mut streams = pod.exec_streams(&id, &["sh", "-c", "wc -c; echo err >&2; exit 6"], false);
    streams.send(Channel::Stdin, &vec![b'x'; 300_000]);
    streams.close(Channel::Stdin);
    let out = streams.finish();
    assert_eq!((out.status, out.text(), out.stderr.as_str()), (6, "300000", "err\n"));
    pod.remove(&id);
}

#[test]
fn exec_with_streams_gives_back_every_byte() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("streams", Wish::idle());
    let input: Vec<u8> = (0..200_000_u32).flat_map(|n| (n % 251).to_le_bytes()[..1].to_vec()).collect();
    let mut streams = pod.exec_streams(&id, &["cat"], false);
    streams.send(Channel::Stdin, &input);
    streams.close(Channel::Stdin);
    assert!(streams.read_to_end(Channel::Stdout) == input, "bytes are lost or changed");
    assert_eq!(streams.finish().status, 0);
    pod.remove(&id);
}

#[test]
fn exec_with_streams_of_a_missing_command_is_told() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("streams", Wish::idle());
    let out = pod.exec_streams(&id, &["no-such-program"], false).finish();
    assert!(out.status != 0 && out.stderr.contains("no-such-program"), "{out:?}");
    pod.remove(&id);
}

#[test]
fn exec_on_a_terminal_has_one_and_follows_its_size() {
    exec_on_a_terminal(&NODE.share());
}

pub(crate) fn exec_on_a_terminal(stay: &Stay<'_>) {
    let pod = stay.pod();
    let id = pod.start("terminal", Wish::idle());
    let mut streams = pod.exec_streams(&id, &["sh"], true);
    streams.resize(91, 33);
    streams.send(
        Channel::Stdin,
        b"until [ \"$(stty size)\" = '33 91' ]; do sleep 0.1; done; tty; echo si''ze\n",
    );
    assert!(streams.expect(Channel::Stdout, "size\r\n").contains("/dev/pts/"));
    streams.resize(120, 44);
    streams
        .send(Channel::Stdin, b"until [ \"$(stty size)\" = '44 120' ]; do sleep 0.1; done; echo lar''ger\n");
    streams.expect(Channel::Stdout, "larger\r\n");
    // Ctrl-C ends what runs in the foreground, not the shell.
    streams.send(Channel::Stdin, b"sleep 777777\n");
    wait_for("the sleep", || pod.sh(&id, "ps").stdout.contains("sleep 777777"));
    streams.send(Channel::Stdin, b"\x03");
    streams.send(Channel::Stdin, b"exit 12\n");
    assert_eq!(streams.finish().status, 12);
    pod.remove(&id);
}

#[test]
fn client_that_goes_away_leaves_the_container_running() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("streams", Wish::idle());
    let mut streams = pod.exec_streams(&id, &["sh", "-c", "echo here; exec cat"], false);
    streams.expect(Channel::Stdout, "here");
    drop(streams);
    wait_for("the end of the exec", || !pod.sh(&id, "ps").ok().stdout.contains(" cat"));
    pod.sh(&id, "true").ok();
    pod.remove(&id);
}

#[test]
fn attached_client_hears_and_is_heard_until_it_closes_stdin() {
    attach(&NODE.share());
}

pub(crate) fn attach(stay: &Stay<'_>) {
    let pod = stay.pod();
    let wish = Wish::sh("while read line; do echo \"got $line\"; done; echo over >&2; exit 8");
    let id = pod.start("attach", wish.with(|config| (config.stdin, config.stdin_once) = (true, true)));
    let mut streams = pod.attach(&id, false);
    streams.send(Channel::Stdin, b"one\ntwo\n");
    streams.expect(Channel::Stdout, "got one\ngot two\n");
    streams.close(Channel::Stdin);
    streams.expect(Channel::Stderr, "over\n");
    drop(streams);
    assert_eq!(pod.wait(&id).exit_code, 8);
    assert!(
        pod.log("attach", 0).contains("stdout F got two\n"),
        "what is attached to is logged all the same"
    );
    pod.remove(&id);
}

#[test]
fn client_attaches_again_to_a_terminal_that_stays_open() {
    let stay = NODE.share();
    let pod = stay.pod();
    let wish = Wish::sh("exec sh").with(|config| (config.stdin, config.tty) = (true, true));
    let id = pod.start("shell", wish);
    for (columns, word) in [(77, "first"), (99, "second")] {
        let mut streams = pod.attach(&id, true);
        streams.resize(columns, 20);
        let script =
            format!("until [ \"$(stty size)\" = '20 {columns}' ]; do sleep 0.1; done; echo {word}''-end\n");
        streams.send(Channel::Stdin, script.as_bytes());
        streams.expect(Channel::Stdout, &format!("{word}-end"));
    }
    let mut streams = pod.attach(&id, true);
    streams.send(Channel::Stdin, b"exit 21\n");
    assert_eq!(pod.wait(&id).exit_code, 21);
    pod.remove(&id);
}

/// A server on the pod's loopback that answers each connection with its first line, in capitals.
const CAPITALS: &str = "
import socket
server = socket.create_server(('127.0.0.1', 7070))
print('listens', flush=True)
while True:
    peer, _ = server.accept()
    data = b''
    while not data.endswith(b'\\n'):
        data += peer.recv(65536)
    peer.sendall(data.upper())
    peer.close()
";

#[test]
fn port_of_the_pods_loopback_is_forwarded() {
    forward(&NODE.share());
}

pub(crate) fn forward(stay: &Stay<'_>) {
    let pod = stay.pod();
    let id = pod.start("server", Wish::sh("").command(&["python3", "-c", CAPITALS]));
    wait_for("the server", || pod.log("server", 0).contains("listens"));
    for text in ["a first connection\n", &("long".repeat(50_000) + "\n")] {
        let mut streams = pod.forward(7070);
        streams.send(Channel::Data, text.as_bytes());
        let answer = streams.read_to_end(Channel::Data);
        assert!(answer == text.to_uppercase().as_bytes(), "{} bytes of {}", answer.len(), text.len());
    }
    pod.remove(&id);
}

#[test]
fn forwarded_port_where_nobody_listens_ends_without_a_byte() {
    let stay = NODE.share();
    let mut streams = stay.pod().forward(7171);
    assert_eq!(streams.read_to_end(Channel::Data), b"");
}
