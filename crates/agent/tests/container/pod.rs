//! Containers that share namespaces and memory, as those of a pod do.

use std::time::Duration;

use nacre_agent::container::{CreateError, IdMaps};
use nacre_protocol::ports::{PROCESS_NAMESPACE, USER_NAMESPACE};
use serde_json::{Value, json};

use crate::fixture::{Started, TestGuest, chain};

/// A container of its own namespaces, up and waiting for a line.
fn sandbox(guest: &TestGuest) -> Started {
    let mut spec = guest.spec("echo up; read line; exit 4");
    with_shared_memory(&mut spec);
    let mut started = guest.create(&spec).unwrap_or_else(|error| panic!("{}", chain(&error))).start();
    assert_eq!(started.line(), "up");
    started
}

fn with_shared_memory(spec: &mut Value) {
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/dev/shm");
    let shm =
        json!({"destination": "/dev/shm", "type": "bind", "source": "/run/nacre/shm", "options": ["rbind"]});
    mounts.push(shm);
}

/// A configuration that joins these namespaces of the sandbox.
fn joining(guest: &TestGuest, sandbox: &Started, kinds: &[&str], script: &str) -> Value {
    let mut spec = guest.spec(script);
    with_shared_memory(&mut spec);
    spec.as_object_mut().unwrap().remove("hostname");
    for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
        let kind = namespace["type"].as_str().unwrap().to_owned();
        if kinds.contains(&kind.as_str()) {
            namespace["path"] = json!(format!("/proc/{}/ns/{kind}", sandbox.child.pid()));
        }
    }
    spec
}

fn end(mut sandbox: Started) {
    sandbox.say("\n");
    assert_eq!(sandbox.finish().status, 4);
}

#[test]
fn namespaces_of_the_sandbox_are_joined_and_the_others_are_its_own() {
    let guest = TestGuest::new();
    let sandbox = sandbox(&guest);
    let name = |kind: &str| {
        let path = format!("/proc/{}/ns/{kind}", sandbox.child.pid());
        std::fs::read_link(path).unwrap().display().to_string()
    };
    let script =
        "cat /proc/sys/kernel/hostname; for n in ipc uts pid mnt; do readlink /proc/self/ns/$n; done";
    let spec = joining(&guest, &sandbox, &["ipc", "uts"], script);
    let ended = guest.run(&spec);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[..3], ["nacre", &name("ipc"), &name("uts")], "{}", ended.stderr);
    assert!(lines[3] != name("pid") && lines[4] != name("mnt"), "{lines:?}");
    end(sandbox);
}

#[test]
fn pid_namespace_of_the_sandbox_can_be_joined() {
    let guest = TestGuest::new();
    let sandbox = sandbox(&guest);
    let script = "cat /proc/1/cmdline | tr '\\0' ' '; echo; kill -0 1 && echo alive; echo $$";
    let ended = guest.run(&joining(&guest, &sandbox, &["pid", "ipc", "uts"], script));
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines[0].contains("echo up"), "{lines:?} {}", ended.stderr);
    assert_eq!(lines[1], "alive");
    assert_ne!(lines[2], "1");
    end(sandbox);
}

#[test]
fn shared_memory_is_one_for_all_and_outlives_a_container() {
    let guest = TestGuest::new();
    let sandbox = sandbox(&guest);
    let write = "echo from-the-first > /dev/shm/x; stat -fc %T /dev/shm; stat -c %a /dev/shm";
    assert_eq!(guest.run(&joining(&guest, &sandbox, &["ipc"], write)).stdout, "tmpfs\n1777\n");
    let read = "cat /dev/shm/x; cp /bin/true /dev/shm/true; /dev/shm/true || echo not executable";
    let ended = guest.run(&joining(&guest, &sandbox, &["ipc"], read));
    assert_eq!(ended.stdout, "from-the-first\nnot executable\n", "{}", ended.stderr);
    end(sandbox);
}

#[test]
fn shared_memory_is_bounded() {
    let guest = TestGuest::new();
    let script =
        "head -c 100M /dev/zero > /dev/shm/x; test $(stat -c %s /dev/shm/x) -le 67108864 && echo bounded";
    let mut spec = guest.spec(script);
    with_shared_memory(&mut spec);
    assert_eq!(guest.run(&spec).stdout, "bounded\n");
}

#[test]
fn namespace_of_a_sandbox_that_is_gone_is_an_error() {
    let guest = TestGuest::new();
    let sandbox = sandbox(&guest);
    let spec = joining(&guest, &sandbox, &["ipc"], "true");
    end(sandbox);
    let error = guest.create(&spec).err().unwrap();
    assert!(matches!(error, CreateError::Source { .. } | CreateError::WrongNamespace { .. }), "{error:?}");
}

/// A guest whose containers have ids from 100,000 on.
fn guest_of_users() -> TestGuest {
    guest_with_map(&[(0, 100_000, 65_536)])
}

/// The same, with the fewest ids and the longest map that there can be.
fn guest_of_some_users() -> TestGuest {
    let lines: Vec<_> = (0..200).map(|id| (id, 100_000 + 2 * id, 1)).collect();
    guest_with_map(&lines)
}

fn guest_with_map(map: &[(u32, u32, u32)]) -> TestGuest {
    let guest = TestGuest::new();
    for name in ["", "tmp", "root"] {
        nix::unistd::chown(&guest.image(name), Some(100_000.into()), Some(100_000.into())).unwrap();
    }
    let map = map.iter().copied();
    let maps = IdMaps::new(map.clone(), map).unwrap().unwrap();
    guest
        .guest
        .launcher
        .make_namespaces(&guest.guest, maps)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    guest
}

/// A configuration as the host makes it of one with a user namespace.
fn of_users(guest: &TestGuest, script: &str) -> Value {
    let mut spec = guest.spec(script);
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({"type": "user", "path": USER_NAMESPACE}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    spec
}

#[test]
fn containers_of_one_user_namespace_share_the_network_that_it_owns() {
    let guest = guest_of_users();
    let network = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).unwrap().display().to_string();
    // Only the owner may mount the network's sysfs, and change its links.
    let script = "readlink /proc/self/ns/user; readlink /proc/self/ns/net; id -u; ls /sys/class/net; \
                  ip link set lo up && echo up; cat /proc/sys/kernel/hostname; cat /proc/self/uid_map";
    let mut outputs = Vec::new();
    for _ in 0..2 {
        let mut spec = of_users(&guest, script);
        let admin = json!(["CAP_NET_ADMIN"]);
        spec["process"]["capabilities"] = json!({"bounding": admin, "effective": admin, "permitted": admin});
        let ended = guest.run(&spec);
        let lines: Vec<String> = ended.stdout.lines().map(str::to_owned).collect();
        assert_eq!(lines.get(2..6), Some(&["0", "lo", "up", "nacre"].map(str::to_owned)[..]), "{ended:?}");
        assert!(lines[6].split_whitespace().eq(["0", "100000", "65536"]), "{ended:?}");
        outputs.push(lines[..2].to_vec());
        // Whoever comes later is born in the same namespaces.
        guest.kill_launcher();
    }
    assert_eq!(outputs[0], outputs[1]);
    assert_ne!(outputs[0][1], network("self"));
}

#[test]
fn exec_in_a_container_of_a_user_namespace_is_in_it() {
    let guest = guest_of_users();
    let mut started = guest.create(&of_users(&guest, "echo up; read line; exit 4")).unwrap().start();
    assert_eq!(started.line(), "up");
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin:/usr/bin:/sbin"],
        "args": ["/bin/sh", "-c", "id -u; touch /tmp/x; cat /proc/self/uid_map"]});
    let ended = started.exec(&guest, &process).unwrap();
    let words: Vec<&str> = ended.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536"], "{ended:?}");
    end(started);
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(guest.image("tmp/x")).unwrap().uid(), 100_000);
}

#[test]
fn namespaces_are_made_once_and_a_path_to_them_leads_nowhere_without() {
    let guest = TestGuest::new();
    assert!(guest.refusal(&of_users(&guest, "true")).starts_with("namespace /run/nacre/user-namespace"));
    let map = [(0, 100_000, 65_536)];
    for attempt in 0..2 {
        let maps = IdMaps::new(map, map).unwrap().unwrap();
        assert_eq!(guest.guest.launcher.make_namespaces(&guest.guest, maps).is_ok(), attempt == 0);
    }
    // Longer than the kernel takes.
    let long: Vec<_> = (0..330).map(|id| (id, 1_000_000 + 2 * id, 1)).collect();
    assert!(IdMaps::new(long.clone(), long).is_err());
    // The same id twice: the kernel refuses.
    let guest = TestGuest::new();
    let maps = IdMaps::new([(0, 1, 5), (0, 9, 5)], map).unwrap().unwrap();
    let error = guest.guest.launcher.make_namespaces(&guest.guest, maps).unwrap_err();
    assert!(chain(&error).contains("make namespaces"), "{}", chain(&error));
}

/// A configuration that is in the PID namespace of a sandbox without a process of its own.
fn sharing_processes(mut spec: Value) -> Value {
    for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == "pid" {
            namespace["path"] = json!(PROCESS_NAMESPACE);
        }
    }
    spec
}

#[test]
fn containers_share_processes_where_the_sandbox_has_none() {
    for guest in [TestGuest::new(), guest_of_users(), guest_of_some_users()] {
        let spec = |script: &str| match guest.guest.launcher.namespaces() {
            Some(_) => sharing_processes(of_users(&guest, script)),
            None => sharing_processes(guest.spec(script)),
        };
        let mut first =
            guest.create(&spec("sleep 1000 & echo $!; read line; kill $!; exit 4")).unwrap().start();
        let sleeper = first.line();
        // The launcher is not what keeps the namespace.
        guest.kill_launcher();
        let script = format!("cat /proc/{sleeper}/comm /proc/1/comm; kill -9 1; (sleep 0.1 &); echo $$");
        for _ in 0..2 {
            let ended = guest.run(&spec(&script));
            let lines: Vec<&str> = ended.stdout.lines().collect();
            assert_eq!(lines[..2], ["sleep", "pause"], "{ended:?}");
            assert_ne!(lines[2], "1", "{ended:?}");
        }
        // It can nearly do nothing, and is in no container's cgroup nor the guest's.
        let script = "grep -E '^(NoNewPrivs|Seccomp|CapEff|CapPrm):' /proc/1/status | tr -s '[:space:]' ' '; \
                      grep -c '^0::/$' /proc/1/cgroup";
        let ended = guest.run(&spec(script));
        let expected = "CapPrm: 0000000000000000 CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 0\n";
        assert_eq!(ended.stdout, expected, "{}", ended.stderr);
        // Its first process cannot be looked into, and nothing could be seen.
        let ended = guest.run(&spec("cat /proc/1/environ || ls /proc/1/root/"));
        assert!(ended.status != 0 && ended.stdout.is_empty(), "{ended:?}");
        first.say("\n");
        assert_eq!(first.finish().status, 4);
        // Orphans of containers that have ended are reaped.
        let ended =
            guest.run(&spec("sleep 1; grep -l '^State:.Z' /proc/[0-9]*/status; ls -d /proc/[0-9]* | wc -l"));
        let count: u32 = ended.stdout.trim().parse().unwrap_or_else(|_| panic!("{ended:?}"));
        assert!(count <= 4, "{ended:?}");
    }
}

/// The same, with a capability more.
fn with_capability(mut spec: Value, name: &str) -> Value {
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set].as_array_mut().unwrap().push(json!(name));
    }
    spec
}

/// Looks for processes with other capabilities than its own, those of the default configuration and none, until /tmp/stop is there.
const LOOK: &str = "own=$(grep CapEff /proc/self/status); echo up; until test -e /tmp/stop; do \
                    grep -h CapEff /proc/[0-9]*/status 2>/dev/null | \
                    grep -v -e \"$own\" -e 0000000020000420 -e 0000000000000000; done; true";

/// As containerd has it: the waiting child would need CAP_SYS_ADMIN for the filter.
fn with_filter(mut spec: Value) -> Value {
    spec["process"]["noNewPrivileges"] = json!(false);
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO"}]});
    spec
}

fn exec_of(guest: &TestGuest, started: &Started, script: &str) -> String {
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin:/usr/bin"],
        "args": ["/bin/sh", "-c", script]});
    started.exec(guest, &process).unwrap_or_else(|error| panic!("{}", chain(&error))).stdout
}

#[test]
fn c15_who_can_trace_stands_still_while_a_process_is_made() {
    let guest = TestGuest::new();
    let mut tracer = sharing_processes(with_capability(guest.spec(LOOK), "CAP_SYS_PTRACE"));
    tracer = with_filter(tracer);
    let mut tracer = guest.create(&tracer).unwrap().start();
    assert_eq!(tracer.line(), "up");
    for _ in 0..20 {
        let other = guest.create(&with_filter(sharing_processes(guest.spec("true")))).unwrap();
        // It waits for its start, and who looks goes on.
        assert_eq!(
            exec_of(&guest, &tracer, "cat /proc/self/cgroup | grep -c +"),
            "0\n",
            "born beside, and moved"
        );
        assert_eq!(other.finish().status, 0);
    }
    std::fs::write(guest.image("tmp/stop"), "").unwrap();
    let ended = tracer.finish();
    assert_eq!((ended.status, ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
}

#[test]
fn c15_process_that_waits_for_its_start_has_what_its_program_will_have() {
    let guest = TestGuest::new();
    // Made while nobody could trace.
    let waiting = guest.create(&with_filter(sharing_processes(guest.spec("exit 4")))).unwrap();
    let look = "grep -h -E '^(CapEff|Seccomp):' /proc/[0-9]*/status | sort | uniq -c | tr -s '[:space:]' ' '";
    let tracer = sharing_processes(with_capability(guest.spec(look), "CAP_SYS_PTRACE"));
    // The first process; the shell and its three; who waits.
    let ended = guest.run(&tracer);
    assert!(
        ended.stdout.contains("1 CapEff: 0000000000000000")
            && ended.stdout.contains("1 CapEff: 0000000020000420"),
        "{ended:?}"
    );
    assert!(
        !ended.stdout.contains("CapEff: 0000000020200420") && ended.stdout.contains(" 2 Seccomp: 2"),
        "{ended:?}"
    );
    assert_eq!(waiting.finish().status, 4);
}

#[test]
fn namespace_of_shared_processes_is_made_anew_where_its_first_process_has_ended() {
    let guest = TestGuest::new();
    let spec = |script: &str| sharing_processes(guest.spec(script));
    let mut first = guest.create(&spec("echo up; read line; exit 4")).unwrap().start();
    assert_eq!(first.line(), "up");
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let shared = namespace(&first.child.pid().to_string()).unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let is_first = |pid: &String| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm == "pause\n" && namespace(pid).as_ref() == Some(&shared)
    };
    let pid = entries.filter_map(|name| name.into_string().ok()).find(is_first).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    assert!(first.child.wait_ended(Duration::from_secs(60)));
    assert_eq!(first.finish().status, 137);
    assert_eq!(guest.run(&spec("cat /proc/1/comm")).stdout, "pause\n");
}

#[test]
fn c15_exec_that_can_trace_makes_its_container_stand_still() {
    let guest = TestGuest::new();
    let mut started = guest.create(&guest.spec("echo up; read line; exit 4")).unwrap().start();
    assert_eq!(started.line(), "up");
    let capabilities = json!(["CAP_SYS_PTRACE"]);
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin:/usr/bin"],
        "args": ["/bin/sh", "-c", LOOK],
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}});
    let ended = std::thread::scope(|scope| {
        let tracer = scope.spawn(|| started.exec(&guest, &process).unwrap());
        for _ in 0..50 {
            exec_of(&guest, &started, "true");
        }
        std::fs::write(guest.image("tmp/stop"), "").unwrap();
        tracer.join().unwrap()
    });
    assert_eq!(ended.stdout, "up\n", "{}", ended.stderr);
    end(started);
}

#[test]
fn paused_container_that_can_trace_stays_paused() {
    let guest = TestGuest::new();
    let spec = |script: &str| sharing_processes(guest.spec(script));
    let tracer = with_capability(spec("echo up; read line; echo again; exit 4"), "CAP_SYS_PTRACE");
    let mut tracer = guest.create(&tracer).unwrap().start();
    assert_eq!(tracer.line(), "up");
    tracer.container.cgroup().freeze().unwrap();
    assert_eq!(guest.run(&spec("true")).status, 0);
    tracer.say("\n");
    assert!(!tracer.child.wait_ended(Duration::from_millis(100)));
    tracer.container.cgroup().thaw().unwrap();
    assert_eq!(tracer.finish().status, 4);
}
