//! The jail as a host sees it (B2): looked at from outside while the guest runs. Needs root, as its maker does.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nacre_protocol::control::{Reply, Request};
use nacre_protocol::vm::JailConfig;

mod owner;

use owner::kernel::{SPIN, file, kernel};
use owner::{Owner, Setup};

const USER: u32 = 64_123;

struct Jailed {
    vmm: Owner,
    pid: u32,
    _ends: (fs::File, std::os::unix::net::UnixStream),
}

fn jailed() -> Jailed {
    let mut vmm = Owner::spawn(Path::new(env!("CARGO_BIN_EXE_nacre-vmm")));
    let mut setup = Setup::new(kernel(&SPIN), file(b"initramfs"));
    setup.config.jail = Some(JailConfig { uid: USER, gid: USER });
    setup.config.rng = true;
    setup.config.balloon = true;
    let (reply, serial, agent) = vmm.start(setup);
    assert!(matches!(reply, Ok(Reply::Started(_))), "{reply:?}");
    let pid = vmm.child.id();
    Jailed { vmm, pid, _ends: (serial, agent) }
}

/// Fields of the status file of each thread.
fn statuses(pid: u32) -> Vec<String> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path().join("status")).unwrap())
        .collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.split(':').next() == Some(name)).unwrap();
    line.split_once(':').unwrap().1.trim()
}

#[test]
fn b2_every_thread_is_an_unprivileged_user_without_capabilities() {
    let jailed = jailed();
    let statuses = statuses(jailed.pid);
    assert!(statuses.len() >= 3, "control, devices, vCPU");
    for status in &statuses {
        let ids = format!("{USER}\t{USER}\t{USER}\t{USER}");
        assert_eq!((field(status, "Uid"), field(status, "Gid")), (ids.as_str(), ids.as_str()));
        assert_eq!(field(status, "Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(status, set), "0000000000000000", "{set}");
        }
    }
}

#[test]
fn b2_every_thread_has_a_system_call_list() {
    let jailed = jailed();
    for status in statuses(jailed.pid) {
        assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1", "2"), "{status}");
    }
}

#[test]
fn b2_namespaces_are_its_own() {
    let jailed = jailed();
    for name in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(of(&jailed.pid.to_string()), of("self"), "{name}");
    }
}

#[test]
fn b2_root_is_empty_and_cannot_be_written() {
    let jailed = jailed();
    let root = format!("/proc/{}/root", jailed.pid);
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    let refused = fs::write(format!("{root}/file"), b"x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", jailed.pid)).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
}

#[test]
fn b2_only_descriptors_of_the_machine_are_open() {
    let jailed = jailed();
    let links: Vec<String> = fs::read_dir(format!("/proc/{}/fd", jailed.pid))
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
            (number > 2).then(|| fs::read_link(entry.path()).unwrap().display().to_string())
        })
        .collect();
    let kinds: BTreeSet<&str> =
        links.iter().map(|link| link.split_once('[').map_or(link.as_str(), |(kind, _)| kind)).collect();
    let known = ["/dev/kvm", "anon_inode:", "pipe:", "socket:", "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0"];
    assert!(kinds.iter().all(|kind| known.contains(kind)), "{links:?}");
}

#[test]
fn b2_core_dumps_are_off() {
    let jailed = jailed();
    let limits = fs::read_to_string(format!("/proc/{}/limits", jailed.pid)).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}

#[test]
fn jailed_machine_still_answers() {
    let mut jailed = jailed();
    assert_eq!(jailed.vmm.request(Request::Pause, &[]), Ok(Reply::Done));
    assert!(matches!(jailed.vmm.request(Request::Stats, &[]), Ok(Reply::Stats(_))));
    assert_eq!(jailed.vmm.request(Request::ResizeBalloon { target_mib: 8 }, &[]), Ok(Reply::Done));
    assert_eq!(jailed.vmm.hang_up().code(), Some(0));
}

#[test]
fn root_as_the_jails_user_is_refused() {
    let mut vmm = Owner::spawn(Path::new(env!("CARGO_BIN_EXE_nacre-vmm")));
    let mut setup = Setup::new(kernel(&SPIN), file(b"initramfs"));
    setup.config.jail = Some(JailConfig { uid: 0, gid: 0 });
    assert!(vmm.start(setup).0.is_err());
}
