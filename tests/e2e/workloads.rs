//! What a kubelet asks of the containers of a pod: who they are, what they may, what they see of the host.

use std::fs;
use std::path::Path;

use nacre_protocol::cri::{LinuxContainerResources, SecurityProfile};
use nacre_tests::cri::{Pod, Wish, pod_config};
use nacre_tests::{Containerd, Outcome, TestSandbox, pids};

/// Sleeps until it is ended.
fn idle() -> Wish {
    Wish::sh("exec sleep 100000")
}

fn inside(pod: &Pod<'_>, container: &str, script: &str) -> Outcome {
    pod.exec(container, &["sh", "-c", script])
}

fn profile(kind: i32) -> SecurityProfile {
    SecurityProfile { profile_type: kind, ..Default::default() }
}

#[test]
fn user_groups_and_privileges_are_those_of_the_security_context() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let pod = Pod::run(&cri, "users", &containerd.path("logs"));
    let user = pod.start(
        "user",
        idle().security(|security| {
            security.run_as_user.mut_or_insert_default().value = 1000;
            security.run_as_group.mut_or_insert_default().value = 3000;
            security.supplemental_groups = vec![4000, 5000];
            security.no_new_privs = true;
            security.seccomp = Some(profile(0)).into();
            security.capabilities.mut_or_insert_default().drop_capabilities = vec!["ALL".into()];
        }),
    );
    assert_eq!(inside(&pod, &user, "id -u; id -g; id -G").ok().stdout, "1000\n3000\n3000 4000 5000\n");
    let status = inside(&pod, &user, "cat /proc/1/status").ok().stdout;
    let has = |key: &str, value: &str| status.lines().any(|line| line == format!("{key}:\t{value}"));
    assert!(has("NoNewPrivs", "1") && has("Seccomp", "2"), "{status}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(has(set, "0000000000000000"), "{set} in {status}");
    }

    let added = pod.start(
        "added",
        idle().security(|security| {
            security.seccomp = Some(profile(1)).into();
            security.capabilities.mut_or_insert_default().add_capabilities = vec!["NET_ADMIN".into()];
        }),
    );
    let status = inside(&pod, &added, "cat /proc/1/status").ok().stdout;
    assert!(status.contains("Seccomp:\t0\n"), "{status}");
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    assert_ne!(u64::from_str_radix(bounding, 16).unwrap() & 1 << 12, 0, "{bounding}");

    let fixed = pod.start("fixed", idle().security(|security| security.readonly_rootfs = true));
    assert_ne!(inside(&pod, &fixed, "touch /new").status, 0);
    inside(&pod, &fixed, "echo x > /dev/shm/x").ok();
    pod.end();
}

#[test]
fn b5_privileged_pod_gets_every_capability_and_none_of_the_hosts_disks() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let mut config = pod_config("privileged", &containerd.path("logs"));
    config.linux.mut_or_insert_default().security_context.mut_or_insert_default().privileged = true;
    let pod = Pod::run_config(&cri, "nacre", config);
    let app = pod.start("app", idle().security(|security| security.privileged = true));
    let capabilities = inside(&pod, &app, "grep CapEff /proc/1/status").ok();
    let capabilities = u64::from_str_radix(capabilities.text().rsplit('\t').next().unwrap(), 16).unwrap();
    assert!(capabilities.count_ones() >= 40, "{capabilities:x}");
    inside(&pod, &app, "mount -t tmpfs none /tmp && echo x > /tmp/x").ok();
    let host_disks = Outcome::of(std::process::Command::new("sh").args(["-c", "ls /sys/block"])).ok();
    assert!(host_disks.text().contains("vda"), "the lab has a disk to be kept: {host_disks:?}");
    let nodes = inside(&pod, &app, "find /dev -type b").ok();
    assert_eq!(nodes.text(), "", "block devices in the container");
    pod.end();
}

#[test]
fn limits_are_changed_while_the_container_runs() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let pod = Pod::run(&cri, "limits", &containerd.path("logs"));
    let app = pod.start("app", idle().memory(64 << 20));
    let read = |file: &str| inside(&pod, &app, &format!("cat /sys/fs/cgroup/{file}")).ok().text().to_owned();
    assert_eq!(read("memory.max"), (64 << 20).to_string());
    let limits = LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        cpu_quota: 30_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    pod.update(&app, limits);
    assert_eq!((read("memory.max"), read("cpu.max")), ((96 << 20).to_string(), "30000 100000".to_owned()));
    pod.end();
}

#[test]
fn volumes_follow_the_host_and_read_only_ones_are_not_written() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let pod = Pod::run(&cri, "volumes", &containerd.path("logs"));
    // A ConfigMap as a kubelet lays it out: keys are links through `..data`, which is exchanged in one step.
    let map = containerd.path("map");
    let write = |version: &str, text: &str| {
        let dir = map.join(format!("..{version}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("key"), text).unwrap();
        std::os::unix::fs::symlink(format!("..{version}"), map.join("..data_tmp")).unwrap();
        fs::rename(map.join("..data_tmp"), map.join("..data")).unwrap();
    };
    write("1", "first");
    std::os::unix::fs::symlink("..data/key", map.join("key")).unwrap();
    let (file, message, scratch) =
        (containerd.path("file"), containerd.path("message"), containerd.path("scratch-volume"));
    fs::write(&file, "a file").unwrap();
    fs::write(&message, "").unwrap();
    fs::create_dir(&scratch).unwrap();
    let wish = idle()
        .mount_read_only(&map, "/etc/map")
        .mount_read_only(&file, "/etc/one-file")
        .mount(&message, "/dev/termination-log")
        .mount(&scratch, "/scratch");
    let app = pod.start("app", wish);

    assert_eq!(inside(&pod, &app, "cat /etc/map/key /etc/one-file").ok().text(), "firsta file");
    for target in ["/etc/map/key", "/etc/map/new", "/etc/one-file"] {
        assert_ne!(inside(&pod, &app, &format!("echo x > {target}")).status, 0, "{target}");
    }
    write("2", "second");
    let wait = "for i in $(seq 100); do [ $(cat /etc/map/key) = second ] && exit 0; sleep 0.2; done; exit 1";
    inside(&pod, &app, wait).ok();

    inside(&pod, &app, "echo ended badly > /dev/termination-log; ln -s a /scratch/b; echo a > /scratch/a")
        .ok();
    assert_eq!(fs::read_to_string(&message).unwrap(), "ended badly\n");
    assert_eq!(fs::read_to_string(scratch.join("b")).unwrap(), "a\n");
    // A second container of the pod sees the same volume.
    let other = pod.start("other", idle().mount(&scratch, "/data"));
    assert_eq!(inside(&pod, &other, "cat /data/b").ok().text(), "a");
    pod.end();
}

#[test]
fn containers_start_one_after_the_other_and_stop_with_grace() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let pod = Pod::run(&cri, "order", &containerd.path("logs"));
    let volume = containerd.path("volume");
    fs::create_dir(&volume).unwrap();
    let init = pod.start("init", Wish::sh("echo prepared > /work/state").mount(&volume, "/work"));
    let ended = pod.wait(&init);
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    let script = "cat /work/state; trap 'echo bye; exit 5' TERM; while true; do sleep 0.1; done";
    let app = pod.start("app", Wish::sh(script).mount(&volume, "/work"));
    // A debug container that comes later sees the pod's network and its own processes.
    let debug = pod.start("debug", idle());
    assert_eq!(inside(&pod, &debug, "hostname").ok().text(), "order");

    let out = inside(&pod, &app, "echo out; echo err >&2; exit 9");
    assert_eq!((out.status, out.stdout.as_str(), out.stderr.as_str()), (9, "out\n", "err\n"));
    let missing = inside(&pod, &app, "no-such-program");
    assert_eq!(missing.status, 127);
    let ended = pod.stop_within(&app, 60);
    assert_eq!((ended.exit_code, ended.reason.as_str()), (5, "Error"));
    let log = pod.log("app", 0);
    assert!(log.contains("stdout F prepared\n") && log.contains("stdout F bye\n"), "{log}");
    pod.end();
}

#[test]
fn sysctls_of_a_pod_hold_in_its_vm_and_the_host_keeps_its_own() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let port = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let host = fs::read_to_string(port).unwrap();
    let mut config = pod_config("sysctls", &containerd.path("logs"));
    let sysctls = &mut config.linux.mut_or_insert_default().sysctls;
    sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "77".into());
    sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let pod = Pod::run_config(&cri, "nacre", config);
    let app = pod.start("app", idle());
    let seen = inside(&pod, &app, &format!("cat {port} /proc/sys/kernel/shm_rmid_forced")).ok();
    assert_eq!(seen.stdout, "77\n1\n");
    assert_eq!(fs::read_to_string(port).unwrap(), host);
    pod.end();
}

#[test]
fn pod_whose_shim_was_killed_can_be_taken_away_and_made_anew() {
    let _census = TestSandbox::new();
    let containerd = Containerd::with_cri();
    let cri = containerd.cri();
    let (shims, vmms) = (pids("containerd-shim"), pids("nacre-vmm"));
    let pod = Pod::run(&cri, "again", &containerd.path("logs"));
    let app = pod.start("app", idle());
    let new = |name: &str, before: &std::collections::BTreeSet<u32>| -> Vec<u32> {
        pids(name).difference(before).copied().collect()
    };
    for pid in new("containerd-shim", &shims) {
        Outcome::of(std::process::Command::new("kill").args(["-9", &pid.to_string()])).ok();
    }
    // Its VM goes with it.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !new("nacre-vmm", &vmms).is_empty() {
        assert!(std::time::Instant::now() < deadline, "the VM outlives its shim");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(pod.wait(&app).exit_code, 255);
    let id = pod.id().to_owned();
    pod.end();
    assert!(!Path::new("/run/nacre/k8s.io").join(id).exists(), "state of the dead pod is left");
    let pod = Pod::run(&cri, "again", &containerd.path("logs"));
    let app = pod.start("app", idle());
    inside(&pod, &app, "true").ok();
    pod.end();
}
