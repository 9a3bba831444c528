//! Creation, start, end, removal.

use std::time::Duration;

use nacre_agent::container::ExecError;
use serde_json::json;

use crate::fixture::{TestGuest, chain};

#[test]
fn program_runs_and_its_output_and_status_come_back() {
    let guest = TestGuest::new();
    let ended = guest.sh("echo out; echo err >&2; exit 7");
    assert_eq!((ended.status, ended.stdout.as_str(), ended.stderr.as_str()), (7, "out\n", "err\n"));
}

#[test]
fn program_does_not_run_before_the_start() {
    let guest = TestGuest::new();
    let running = guest.create(&guest.spec("touch /tmp/ran")).unwrap();
    assert!(!running.created.init.child.wait_ended(Duration::from_millis(50)));
    assert!(!guest.image("tmp/ran").exists());
    running.finish();
    assert!(guest.image("tmp/ran").exists());
}

#[test]
fn dropped_starter_ends_the_child() {
    let guest = TestGuest::new();
    let running = guest.create(&guest.spec("touch /tmp/ran")).unwrap();
    let container = running.created.container;
    drop(running.created.init.starter);
    assert!(running.created.init.child.wait_ended(Duration::from_secs(10)));
    container.remove().unwrap();
    assert!(!guest.image("tmp/ran").exists());
}

#[test]
fn signal_is_seen_in_the_status() {
    let guest = TestGuest::new();
    assert_eq!(guest.sh("kill -9 $$; true").status, 0, "init of a pid namespace is safe from itself");
    assert_eq!(guest.sh("sh -c 'kill -15 $$'; echo $?").stdout.trim(), "143");
}

#[test]
fn removal_kills_what_is_left_and_may_be_repeated() {
    let guest = TestGuest::new();
    let mut started = guest.create(&guest.spec("trap '' TERM; echo up; sleep 1000")).unwrap().start();
    assert_eq!(started.line(), "up");
    started.container.remove().unwrap();
    started.container.remove().unwrap();
    assert!(started.child.wait_ended(Duration::from_secs(10)));
    assert!(!guest.guest.cgroup_root.join("nacre").join("nothing").exists());
}

#[test]
fn unknown_program_is_127() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("");
    spec["process"]["args"] = json!(["nosuchprogram"]);
    assert_eq!(guest.refusal(&spec), r#"exec: "nosuchprogram": executable file not found in $PATH"#);
    spec["process"]["args"] = json!(["/no/such"]);
    assert_eq!(guest.refusal(&spec), r#"exec: "/no/such": stat /no/such: no such file or directory"#);
}

#[test]
fn program_without_permission_is_126() {
    let guest = TestGuest::new();
    std::fs::write(guest.image("script"), "#!/bin/sh\n").unwrap();
    let mut spec = guest.spec("");
    spec["process"]["args"] = json!(["/script"]);
    assert_eq!(guest.refusal(&spec), r#"exec: "/script": permission denied"#);
    spec["process"]["args"] = json!(["/etc"]);
    assert_eq!(guest.refusal(&spec), r#"exec: "/etc": is a directory"#);
}

#[test]
fn program_that_the_kernel_refuses_fails_the_start_and_the_status_agrees() {
    let guest = TestGuest::new();
    for (name, text, status, reason) in [
        ("format", "no program\n", 126, "exec format error"),
        ("interpreter", "#!/no/such\n", 127, "no such file or directory"),
    ] {
        std::fs::write(guest.image(name), text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(guest.image(name), mode).unwrap();
        let mut spec = guest.spec("");
        spec["process"]["args"] = json!([format!("/{name}")]);
        let created = guest.create(&spec).unwrap().created;
        let error: ExecError = created.init.starter.start().unwrap_err();
        assert!(chain(&error).contains(reason), "{error}");
        assert_eq!(error.exit_status(), status);
        assert_eq!(crate::fixture::wait(&created.init.child), status);
        created.container.remove().unwrap();
    }
}

#[test]
fn failed_creation_leaves_nothing() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("");
    spec["mounts"].as_array_mut().unwrap().push(json!({"destination": "/x", "type": "nosuchfs"}));
    assert!(guest.refusal(&spec).contains("nosuchfs"));
    let parent = guest.guest.cgroup_root.join("nacre");
    let prefix = format!("test-{}-", std::process::id());
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!mounts.contains("overlay nacre"), "{mounts}");
    // Other tests' containers live there too; of a failed one, the next test with its id would fail.
    assert!(std::fs::read_dir(parent).unwrap().count() < 1000, "{prefix}");
}

#[test]
fn many_containers_at_once_are_made() {
    let threads: Vec<_> = (0..8)
        .map(|number| {
            std::thread::spawn(move || {
                let guest = TestGuest::new();
                let ended = guest.sh(&format!("exit {number}"));
                assert_eq!(ended.status, number);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn killed_launcher_is_made_anew() {
    let guest = TestGuest::new();
    assert_eq!(guest.sh("exit 3").status, 3);
    guest.kill_launcher();
    assert_eq!(guest.sh("exit 4").status, 4);
}
