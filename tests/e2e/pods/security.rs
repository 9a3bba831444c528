//! What a container may: capabilities, seccomp, paths of the kernel, devices; and what is refused.

use nacre_protocol::cri::SecurityProfile;
use nacre_tests::cri::{Pod, Wish};
use nacre_tests::{Outcome, Stay};

use super::NODE;

/// Bits of `linux/capability.h`.
const CAP_CHOWN: u64 = 1 << 0;
const CAP_NET_ADMIN: u64 = 1 << 12;

/// NamespaceMode.
const NODES: i32 = 2;
const TARGET: i32 = 3;

fn profile(kind: i32, file: &str) -> SecurityProfile {
    SecurityProfile { profile_type: kind, localhost_ref: file.to_owned(), ..Default::default() }
}

/// Runs `cat /proc/self/status` as the container does.
fn status_of(stay: &Stay<'_>, name: &str, wish: Wish) -> String {
    let (ended, log) = stay.pod().run_to_end(name, wish.command(&["cat", "/proc/self/status"]));
    assert_eq!(ended.exit_code, 0, "{log}");
    log
}

fn set(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.split_once(&format!("{name}:\t"))).expect("a set");
    u64::from_str_radix(line.1, 16).expect("a set in hexadecimal")
}

#[test]
fn container_has_the_capabilities_that_containerd_gives_by_default() {
    let status = status_of(&NODE.share(), "default", Wish::idle());
    // CHOWN, DAC_OVERRIDE, FSETID, FOWNER, MKNOD, NET_RAW, SETGID, SETUID, SETFCAP, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT, KILL,
    // AUDIT_WRITE: the sets that containerd writes into the configuration.
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(set(&status, name), 0xa804_25fb, "{name}");
    }
    assert_eq!(set(&status, "CapAmb"), 0);
}

#[test]
fn capabilities_are_added_and_dropped() {
    capabilities(&NODE.share());
}

pub(crate) fn capabilities(stay: &Stay<'_>) {
    let wish = Wish::idle().security(|security| {
        let capabilities = security.capabilities.mut_or_insert_default();
        capabilities.add_capabilities = vec!["NET_ADMIN".into()];
        capabilities.drop_capabilities = vec!["CHOWN".into()];
    });
    let effective = set(&status_of(stay, "added", wish), "CapEff");
    assert_eq!(effective & (CAP_NET_ADMIN | CAP_CHOWN), CAP_NET_ADMIN, "{effective:x}");
    let wish = Wish::idle().security(|security| {
        security.capabilities.mut_or_insert_default().drop_capabilities = vec!["ALL".into()];
    });
    let status = status_of(stay, "dropped", wish);
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(set(&status, name), 0, "{name} in {status}");
    }
}

#[test]
fn dropped_capability_is_missed_and_an_added_one_is_of_use() {
    let stay = NODE.share();
    let pod = stay.pod();
    let wish = Wish::idle().security(|security| {
        let capabilities = security.capabilities.mut_or_insert_default();
        capabilities.add_capabilities = vec!["SYS_TIME".into(), "SYS_ADMIN".into()];
        capabilities.drop_capabilities = vec!["CHOWN".into()];
    });
    let id = pod.start("used", wish);
    assert_ne!(pod.sh(&id, "touch /f && chown 5 /f").status, 0);
    pod.sh(&id, "mkdir /m && mount -t tmpfs none /m").ok();
    pod.remove(&id);
}

#[test]
fn no_new_privs_keeps_a_setuid_program_from_gaining() {
    let stay = NODE.share();
    let pod = stay.pod();
    for (attempt, strict) in [(0, false), (1, true)] {
        let wish = Wish::idle().attempt(attempt).security(|security| security.no_new_privs = strict);
        let id = pod.start("privs", wish);
        let bit = pod.sh(&id, "grep NoNewPrivs /proc/self/status | cut -f2").ok();
        assert_eq!(bit.text(), if strict { "1" } else { "0" });
        // A program of root's own that any user may run as root.
        let script = "cp /usr/bin/python3 /py && chmod 4755 /py && exec python3 -c 'import os; os.setuid(1000); \
                      os.execv(\"/py\", [\"/py\", \"-c\", \"import os; print(os.geteuid())\"])'";
        assert_eq!(pod.sh(&id, script).ok().text(), if strict { "1000" } else { "0" });
        pod.remove(&id);
    }
}

#[test]
fn seccomp_is_the_runtimes_none_or_that_of_a_file() {
    seccomp(&NODE.share());
}

pub(crate) fn seccomp(stay: &Stay<'_>) {
    let file = stay.file(
        "no-mkdir.json",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"#,
    );
    let file = file.display().to_string();
    let pod = stay.pod();
    for (attempt, kind, name, mode) in [(0, 0, "", "2"), (1, 1, "", "0"), (2, 2, file.as_str(), "2")] {
        let wish = Wish::idle().attempt(attempt);
        let id = pod
            .start("seccomp", wish.security(|security| security.seccomp = Some(profile(kind, name)).into()));
        assert_eq!(pod.sh(&id, "grep Seccomp: /proc/1/status | cut -f2").ok().text(), mode);
        let made = pod.sh(&id, "touch /ok && mkdir /dir");
        assert_eq!(made.status == 0, kind != 2, "{made:?}");
        assert!(kind != 2 || made.stderr.contains("not supported"), "{made:?}");
        pod.remove(&id);
    }
}

#[test]
fn seccomp_file_that_is_not_there_is_refused() {
    let stay = NODE.share();
    let wish = Wish::idle().security(|security| {
        security.seccomp = Some(profile(2, "/no/such/profile.json")).into();
    });
    let refusal = stay.pod().try_create("seccomp", wish).unwrap_err();
    assert!(refusal.message.contains("/no/such/profile.json"), "{refusal:?}");
}

#[test]
fn masked_paths_are_empty_and_read_only_ones_are_not_written() {
    let stay = NODE.share();
    let pod = stay.pod();
    let paths = |of: &[&str]| of.iter().map(|path| (*path).to_owned()).collect::<Vec<String>>();
    let wish = Wish::idle().security(|security| {
        security.masked_paths =
            paths(&["/proc/timer_list", "/proc/keys", "/sys/firmware", "/proc/no-such-file"]);
        security.readonly_paths = paths(&["/proc/sys", "/proc/no-such-file"]);
    });
    let masked = pod.start("masked", wish);
    assert_eq!(pod.sh(&masked, "cat /proc/timer_list /proc/keys; ls /sys/firmware").stdout, "");
    let written = pod.sh(&masked, "echo x > /proc/sys/kernel/core_pattern");
    assert!(written.stderr.contains("Read-only"), "{written:?}");
    // procMount: Unmasked.
    let open = pod.start("open", Wish::idle());
    assert_ne!(pod.sh(&open, "cat /proc/timer_list | head -c 5; grep -c /proc/ /proc/mounts").stdout, "");
    assert_eq!(pod.sh(&open, "grep -c ' /proc/' /proc/mounts").text(), "0");
    pod.remove(&masked);
    pod.remove(&open);
}

#[test]
fn read_only_root_is_not_written_and_its_volumes_are() {
    let stay = NODE.share();
    let pod = stay.pod();
    let volume = stay.dir("beside-read-only");
    let wish = Wish::idle().mount(&volume, "/scratch").security(|security| security.readonly_rootfs = true);
    let id = pod.start("fixed", wish);
    let written = pod.sh(&id, "touch /new");
    assert!(written.stderr.contains("Read-only"), "{written:?}");
    pod.sh(&id, "touch /scratch/new /dev/shm/new && rm /dev/shm/new").ok();
    assert!(volume.join("new").exists());
    pod.remove(&id);
}

#[test]
fn devices_that_a_container_was_not_given_are_not_opened() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("devices", Wish::idle());
    pod.sh(&id, "head -c 1 /dev/zero && echo > /dev/null && head -c 1 /dev/urandom > /dev/null").ok();
    for (kind, number) in [("c", "1 1"), ("c", "1 4"), ("b", "254 0"), ("c", "10 200")] {
        let made = pod.sh(&id, &format!("rm -f /tmp/d; mknod /tmp/d {kind} {number} && head -c 1 /tmp/d"));
        assert!(made.stderr.contains("not permitted"), "{kind} {number}: {made:?}");
    }
    pod.remove(&id);
}

#[test]
fn b5_privileged_pod_gets_every_capability_and_none_of_the_hosts_disks() {
    let stay = NODE.enter();
    let mut config = stay.config("privileged");
    config.linux.mut_or_insert_default().security_context.mut_or_insert_default().privileged = true;
    let pod = stay.run_config(config);
    let app = pod.start("app", Wish::idle().security(|security| security.privileged = true));
    let capabilities = pod.sh(&app, "grep CapEff /proc/1/status").ok();
    let capabilities = u64::from_str_radix(capabilities.text().rsplit('\t').next().unwrap(), 16).unwrap();
    assert!(capabilities.count_ones() >= 40, "{capabilities:x}");
    pod.sh(&app, "mount -t tmpfs none /tmp && echo x > /tmp/x").ok();
    let host_disks = Outcome::of(std::process::Command::new("sh").args(["-c", "ls /sys/block"])).ok();
    assert!(host_disks.text().contains("vda"), "the lab has a disk to be kept: {host_disks:?}");
    assert_eq!(pod.sh(&app, "find /dev -type b").ok().text(), "", "block devices in the container");
    pod.end();
}

#[test]
fn namespaces_of_the_host_are_refused() {
    let stay = NODE.enter();
    for (name, network, pid, ipc) in
        [("hosts-network", NODES, 1, 0), ("hosts-pid", 0, NODES, 0), ("hosts-ipc", 0, 1, NODES)]
    {
        let mut config = stay.config(name);
        let linux = config.linux.mut_or_insert_default();
        let options =
            linux.security_context.mut_or_insert_default().namespace_options.mut_or_insert_default();
        (options.network, options.pid, options.ipc) = (network, pid, ipc);
        let refusal = Pod::try_run(stay.cri(), "nacre", config).err().unwrap();
        assert!(refusal.message.contains("host"), "{name}: {refusal:?}");
    }
}

#[test]
fn debug_container_with_the_processes_of_another_is_refused() {
    let stay = NODE.share();
    let pod = stay.pod();
    let target = pod.start("target", Wish::idle());
    let wish = Wish::idle().security(|security| {
        let options = security.namespace_options.mut_or_insert_default();
        (options.pid, options.target_id) = (TARGET, target.clone());
    });
    let (debug, refusal) = pod.start_refused("debug", wish);
    assert!(refusal.message.contains("debug target"), "{refusal:?}");
    pod.remove(&debug);
    pod.remove(&target);
}

#[test]
fn h02_annotations_for_programs_paths_and_parameters_are_refused() {
    let stay = NODE.share();
    let pod = stay.pod();
    for (attempt, key) in ["kernel", "kernel_params", "vmm", "share", "initrd"].into_iter().enumerate() {
        let wish = Wish::idle().attempt(attempt.try_into().unwrap()).with(|config| {
            config.annotations.insert(format!("dev.nacre.{key}"), "/etc/shadow init=/bin/sh".into());
        });
        let (id, refusal) = pod.start_refused("hostile", wish);
        assert!(
            refusal.message.contains(&format!("annotation dev.nacre.{key} is not allowed")),
            "{refusal:?}"
        );
        pod.remove(&id);
    }
}

#[test]
fn f02_trees_of_the_hosts_kernel_are_not_shared() {
    let stay = NODE.share();
    let pod = stay.pod();
    for (attempt, path) in ["/proc", "/sys", "/proc/sys/kernel"].into_iter().enumerate() {
        let wish =
            Wish::idle().attempt(attempt.try_into().unwrap()).mount(std::path::Path::new(path), "/host");
        let (id, refusal) = pod.start_refused("kernel", wish);
        assert!(refusal.message.contains(path), "{refusal:?}");
        pod.remove(&id);
    }
}

#[test]
fn sysctls_of_a_pod_hold_in_its_vm_and_the_host_keeps_its_own() {
    let stay = NODE.enter();
    let port = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let host = std::fs::read_to_string(port).unwrap();
    let mut config = stay.config("sysctls");
    let sysctls = &mut config.linux.mut_or_insert_default().sysctls;
    sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "77".into());
    sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let pod = stay.run_config(config);
    let app = pod.start("app", Wish::idle());
    let seen = pod.sh(&app, &format!("cat {port} /proc/sys/kernel/shm_rmid_forced")).ok();
    assert_eq!(seen.stdout, "77\n1\n");
    assert_eq!(std::fs::read_to_string(port).unwrap(), host);
    pod.end();
}
