//! Containers that share namespaces and memory, as those of a pod do.

use nacre_agent::container::CreateError;
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
