//! `nacre-fs` as its owner sees it: the start message, the answer, the end.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nacre_protocol::control::FailureKind;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::process::Server;

fn directory() -> (tempfile::TempDir, File) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hello"), "world").unwrap();
    let file = File::open(dir.path()).unwrap();
    (dir, file)
}

#[test]
fn b2_server_is_jailed_before_it_answers() {
    let (_dir, file) = directory();
    let server = Server::start(&file, true, "0");
    assert_eq!(server.reply(), Ok(()));
    assert_eq!(server.status_of("NoNewPrivs:"), "1");
    assert_eq!(server.status_of("Seccomp:"), "2");
    assert_eq!(server.status_of("Groups:"), "");
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID: bits 0, 1, 3, 4, 6, 7.
    assert_eq!(server.status_of("CapEff:"), "00000000000000db");
    assert_eq!(server.status_of("CapBnd:"), "00000000000000db");
    let entries = |path: &str| -> Vec<_> {
        let path = format!("/proc/{}/root/{path}", server.child.id());
        let mut names: Vec<_> =
            std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(entries(""), ["proc", "shares"]);
    assert_eq!(entries("shares"), ["0"]);
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", server.child.id())).unwrap();
    let share = mounts.lines().find(|line| line.contains(" /shares/0 ")).unwrap();
    assert!(share.contains(" ro,nosuid,nodev"), "{share}");
}

#[test]
fn server_ends_with_its_owner() {
    let (_dir, file) = directory();
    let mut server = Server::start(&file, true, "0");
    assert_eq!(server.reply(), Ok(()));
    let (unused, _) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
    drop(std::mem::replace(&mut server.owner, unused));
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn server_ends_with_the_vmm() {
    let (_dir, file) = directory();
    let mut server = Server::start(&file, true, "0");
    assert_eq!(server.reply(), Ok(()));
    let (unused, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut server.vmm, unused));
    assert!(server.child.wait().unwrap().code().is_some());
}

#[test]
fn f01_share_named_as_a_path_is_refused_in_words() {
    let (_dir, file) = directory();
    let mut server = Server::start(&file, true, "../etc");
    let failure = server.reply().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Invalid);
    assert!(failure.message.contains("../etc"), "{}", failure.message);
    assert_eq!(server.child.wait().unwrap().code(), Some(1));
}

#[test]
fn program_started_by_hand_says_who_starts_it() {
    let output = Command::new("sh")
        .args(["-c", "exec \"$0\" 3<&-", env!("CARGO_BIN_EXE_nacre-fs")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let mut text = String::new();
    output.stderr.as_slice().read_to_string(&mut text).unwrap();
    assert!(text.contains("containerd-shim-nacre-v2"), "{text}");
}
