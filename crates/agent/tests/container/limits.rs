//! The cgroup: freezing, killing, figures; limits where this machine's cgroup v2 has controllers.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::fixture::{TestGuest, cgroup_root, has_controllers};

#[test]
fn frozen_container_stands_still() {
    let guest = TestGuest::new();
    let mut started = guest.create(&guest.spec("echo up; read line; echo again")).unwrap().start();
    started.line();
    started.container.cgroup().freeze().unwrap();
    started.say("\n");
    assert!(!started.child.wait_ended(Duration::from_millis(100)));
    started.container.cgroup().thaw().unwrap();
    assert_eq!(started.line(), "again");
    started.finish();
}

#[test]
fn all_processes_are_listed_signalled_and_killed() {
    let guest = TestGuest::new();
    let script = "trap 'echo term; read line' TERM; sleep 1000 & echo up; wait; exit 5";
    let mut started = guest.create(&guest.spec(script)).unwrap().start();
    started.line();
    let cgroup = started.container.cgroup();
    let pids = cgroup.pids().unwrap();
    assert!(pids.len() == 2 && pids.contains(&started.child.pid()), "{pids:?}");
    cgroup.signal_all(Signal::TERM).unwrap();
    assert_eq!(started.line(), "term");
    started.container.cgroup().kill_all().unwrap();
    assert_eq!(started.finish().status, 137);
}

#[test]
fn nested_cgroups_of_the_container_go_with_it() {
    let guest = TestGuest::new();
    let mut spec = guest
        .spec("cd /sys/fs/cgroup && mkdir -p a/b/c d && echo $$ > a/b/c/cgroup.procs; echo up; read line");
    for mount in spec["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/sys/fs/cgroup" {
            mount["options"] = json!(["rw"]);
        }
    }
    let mut started = guest.create(&spec).unwrap().start();
    started.line();
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", started.child.pid())).unwrap();
    assert!(own.contains("/a/b/c"), "{own}");
    assert_eq!(started.container.cgroup().pids().unwrap(), [started.child.pid()]);
    started.container.remove().unwrap();
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    let top = path.strip_suffix("/a/b/c").unwrap().trim_start_matches('/');
    assert!(!cgroup_root().join(top).exists());
}

#[test]
fn limits_are_written_and_figures_read() {
    if !has_controllers() {
        eprintln!("SKIPPED: cgroup v2 has no controllers on this machine; runs in the lab");
        return;
    }
    let guest = TestGuest::new();
    let mut spec = guest.spec("cd /sys/fs/cgroup; cat memory.max memory.low memory.swap.max pids.max cpu.max cpu.weight; echo up; read line");
    spec["linux"]["resources"] = json!({
        "memory": {"limit": 104857600, "reservation": 52428800, "swap": 104857600},
        "pids": {"limit": 77},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000}
    });
    let mut started = guest.create(&spec).unwrap().start();
    let lines: Vec<_> = (0..7).map(|_| started.line()).collect();
    assert_eq!(lines, ["104857600", "52428800", "0", "77", "50000 100000", "59", "up"]);
    let cgroup = started.container.cgroup();
    cgroup.update(br#"{"memory":{"limit":209715200,"swap":-1},"pids":{"limit":-1}}"#).unwrap();
    // The same rules again, as containerd sends them.
    let rules = br#"{"devices":[{"allow":false,"access":"rwm"}]}"#;
    cgroup.update(rules).unwrap();
    cgroup.update(rules).unwrap();
    let stats = cgroup.stats().unwrap();
    assert_eq!((stats.memory_max, stats.pids_max, stats.pids_current), (209_715_200, u64::MAX, 1));
    assert!(stats.memory_current > 0 && stats.cpu_usage_usec > 0 && stats.memory_stat.contains("anon "));
    assert!(
        cgroup.update(br#"{"memory":{"limit":4096,"checkBeforeUpdate":true}}"#).unwrap_err().is_invalid()
    );
    assert!(cgroup.update(br#"{"unified":{"no.such":"1"}}"#).unwrap_err().is_invalid());
    started.say("\n");
    started.finish();
}

#[test]
fn memory_limit_kills_and_is_counted() {
    if !has_controllers() {
        eprintln!("SKIPPED: cgroup v2 has no controllers on this machine; runs in the lab");
        return;
    }
    let guest = TestGuest::new();
    let mut spec = guest.spec("head -c 300m /dev/zero | tail > /dev/null; echo $?");
    spec["linux"]["resources"]["memory"] = json!({"limit": 50 << 20, "swap": 50 << 20});
    let running = guest.create(&spec).unwrap();
    let container = running.created.container.clone();
    let started = running.start();
    assert!(started.child.wait_ended(Duration::from_secs(60)));
    assert!(container.cgroup().oom_kills().unwrap() > 0);
    assert_eq!(started.finish().stdout, "137\n");
}

#[test]
fn pids_limit_holds() {
    if !has_controllers() {
        eprintln!("SKIPPED: cgroup v2 has no controllers on this machine; runs in the lab");
        return;
    }
    let guest = TestGuest::new();
    let mut spec =
        guest.spec("for i in 1 2 3 4 5 6; do sleep 5 & done 2>&1; kill %1 %2 %3 %4 2>/dev/null; true");
    spec["linux"]["resources"]["pids"] = json!({"limit": 4});
    let ended = guest.run(&spec);
    assert!(ended.stdout.contains("fork"), "{ended:?}");
}
