//! Further processes in a running container.

use std::time::Duration;

use nacre_agent::container::{ChildStdio, ExecInput, create_exec};
use serde_json::{Value, json};

use crate::fixture::{Started, TestGuest, chain};

fn up(guest: &TestGuest) -> Started {
    let mut started = guest.create(&guest.spec("echo up; read line; exit 4")).unwrap().start();
    assert_eq!(started.line(), "up");
    started
}

fn process(guest: &TestGuest, script: &str) -> Value {
    guest.spec(script)["process"].clone()
}

fn end(mut started: Started) {
    started.say("\n");
    assert_eq!(started.finish().status, 4);
}

#[test]
fn exec_is_in_all_namespaces_of_init() {
    let guest = TestGuest::new();
    let started = up(&guest);
    let script = "for n in pid mnt uts ipc net cgroup; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n; done; \
        cat /proc/sys/kernel/hostname; cat /proc/self/cgroup | grep ^0; pwd; exit 9";
    let mut process = process(&guest, script);
    process["cwd"] = json!("/tmp");
    process["capabilities"] = json!({"bounding": ["CAP_SYS_PTRACE"], "effective": ["CAP_SYS_PTRACE"], "permitted": ["CAP_SYS_PTRACE"]});
    let ended = started.exec(&guest, &process).unwrap();
    assert_eq!((ended.status, ended.stdout.as_str()), (9, "nacre\n0::/\n/tmp\n"), "{ended:?}");
    end(started);
}

#[test]
fn exec_has_its_own_user_capabilities_and_environment() {
    let guest = TestGuest::new();
    let started = up(&guest);
    let mut process = process(
        &guest,
        "id -u; id -G; grep CapBnd /proc/self/status; echo $V; ulimit -n; grep NoNew /proc/self/status",
    );
    process["user"] = json!({"uid": 0, "gid": 0, "username": "web"});
    process["capabilities"] = json!({"bounding": ["CAP_CHOWN"]});
    process["env"] = json!(["V=value"]);
    process["noNewPrivileges"] = json!(false);
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 77}]);
    let expected = "33\n33 29\nCapBnd:\t0000000000000001\nvalue\n77\nNoNewPrivs:\t0\n";
    assert_eq!(started.exec(&guest, &process).unwrap().stdout, expected);
    end(started);
}

#[test]
fn exec_is_under_the_containers_filter() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("echo up; read line; exit 4");
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]});
    let mut started = guest.create(&spec).unwrap().start();
    started.line();
    let ended = started.exec(&guest, &process(&guest, "mkdir /tmp/x 2>&1")).unwrap();
    assert!(ended.stdout.contains("No space left"), "{ended:?}");
    end(started);
}

#[test]
fn exec_of_an_unknown_program_says_so() {
    let guest = TestGuest::new();
    let started = up(&guest);
    let mut process = process(&guest, "");
    process["args"] = json!(["nosuch"]);
    let error = started.exec(&guest, &process).unwrap_err();
    assert_eq!(chain(&error), r#"exec: "nosuch": executable file not found in $PATH"#);
    process["args"] = json!(["true"]);
    process["cwd"] = json!("/no/such");
    let error = started.exec(&guest, &process).unwrap_err();
    assert!(chain(&error).starts_with("enter working directory: enter /no/such"), "{}", chain(&error));
    end(started);
}

#[test]
fn exec_may_have_a_terminal() {
    let guest = TestGuest::new();
    let started = up(&guest);
    let input = ExecInput {
        process_json: serde_json::to_vec(&process(&guest, "tty; stty size")).unwrap(),
        stdio: ChildStdio::Terminal { columns: 20, rows: 10 },
    };
    let created = create_exec(&guest.guest, &started.container, input).unwrap();
    created.starter.start().unwrap();
    assert_eq!(crate::fixture::wait(&created.child), 0);
    let mut text = String::new();
    let _ = std::io::Read::read_to_string(&mut std::fs::File::from(created.terminal.unwrap()), &mut text);
    assert_eq!(text, "/dev/pts/0\r\n10 20\r\n");
    end(started);
}

#[test]
fn exec_in_a_user_namespace_is_its_root() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("echo up; read line; exit 4");
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    let mut started = guest.create(&spec).unwrap().start();
    started.line();
    let ended = started
        .exec(&guest, &process(&guest, "id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user"))
        .unwrap();
    let user = std::fs::read_link(format!("/proc/{}/ns/user", started.child.pid())).unwrap();
    assert!(ended.stdout.starts_with("0\n") && ended.stdout.contains("100000"), "{ended:?}");
    assert!(ended.stdout.ends_with(&format!("{}\n", user.display())), "{ended:?}");
    end(started);
}

#[test]
fn exec_after_the_end_of_init_is_refused() {
    let guest = TestGuest::new();
    let started = guest.create(&guest.spec("exit 4")).unwrap().start();
    assert!(started.child.wait_ended(Duration::from_secs(10)));
    let error = started.exec(&guest, &process(&guest, "true")).unwrap_err();
    assert!(error.is_invalid(), "{}", chain(&error));
    started.finish();
}

#[test]
fn exec_finds_init_where_the_container_has_moved_it() {
    let guest = TestGuest::new();
    let mut spec = guest.spec(
        "cd /sys/fs/cgroup && mkdir inner && echo 1 > inner/cgroup.procs && echo up; read line; exit 4",
    );
    for mount in spec["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/sys/fs/cgroup" {
            mount["options"] = json!(["rw"]);
        }
    }
    let mut started = guest.create(&spec).unwrap().start();
    assert_eq!(started.line(), "up");
    assert_eq!(started.exec(&guest, &process(&guest, "exit 8")).unwrap().status, 8);
    end(started);
}
