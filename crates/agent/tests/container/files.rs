//! Small files of the request as bind mounts.

use nacre_agent::container::BundleFile;
use serde_json::{Value, json};

use crate::fixture::{TestGuest, chain};

fn file(name: &str, content: &str, mode: u32) -> BundleFile {
    BundleFile { name: name.parse().unwrap(), content: content.into(), mode }
}

/// A configuration with a bind mount for each destination and file name.
fn spec(guest: &TestGuest, script: &str, binds: &[(&str, &str)]) -> Value {
    let mut spec = guest.spec(script);
    for (destination, name) in binds {
        let source = format!("/run/nacre/files/{name}");
        let mount = json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate"]});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    }
    spec
}

fn attached(guest: &TestGuest) -> usize {
    let state = guest.guest.state_dir.to_str().unwrap();
    // The whole process's file would be another thread's mount namespace.
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains(&format!("{state}/"))).count()
}

#[test]
fn files_have_content_mode_and_owner_and_leave_nothing_in_the_guest() {
    let guest = TestGuest::new();
    let script = "cat /etc/hosts /etc/hostname; stat -c %u:%g:%a /etc/hosts /etc/hostname";
    let spec = spec(&guest, script, &[("/etc/hosts", "m1"), ("/etc/hostname", "m2")]);
    let files = vec![file("m1", "127.0.0.1\tlocalhost\n", 0o644), file("m2", "web\n", 0o600)];
    let running = guest.create_with_files(&spec, files).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(attached(&guest), 0);
    assert_eq!(std::fs::read_dir(&guest.guest.state_dir).unwrap().count(), 0);
    let ended = running.finish();
    assert_eq!(ended.stdout, "127.0.0.1\tlocalhost\nweb\n0:0:644\n0:0:600\n", "{}", ended.stderr);
}

#[test]
fn container_can_write_to_its_files_and_mount_over_them() {
    let guest = TestGuest::new();
    let script = "echo more >> /etc/hosts && cat /etc/hosts && mount --bind /etc/passwd /etc/hosts && head -c 4 /etc/hosts";
    let mut spec = spec(&guest, script, &[("/etc/hosts", "hosts")]);
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
    }
    let running = guest.create_with_files(&spec, vec![file("hosts", "first\n", 0o644)]).unwrap();
    let ended = running.finish();
    assert_eq!(ended.stdout, "first\nmore\nroot", "{}", ended.stderr);
}

#[test]
fn what_a_container_writes_to_a_file_is_bounded() {
    let guest = TestGuest::new();
    let script =
        "head -c 64M /dev/zero > /etc/hosts; test $(stat -c %s /etc/hosts) -le 4194304 && echo bounded";
    let spec = spec(&guest, script, &[("/etc/hosts", "hosts")]);
    let running = guest.create_with_files(&spec, vec![file("hosts", "", 0o644)]).unwrap();
    assert_eq!(running.finish().stdout, "bounded\n");
}

#[test]
fn read_only_file_cannot_be_written() {
    let guest = TestGuest::new();
    let mut spec = spec(&guest, "echo x > /etc/hosts || echo refused", &[("/etc/hosts", "hosts")]);
    let last = spec["mounts"].as_array().unwrap().len() - 1;
    spec["mounts"][last]["options"] = json!(["rbind", "ro"]);
    let running = guest.create_with_files(&spec, vec![file("hosts", "", 0o666)]).unwrap();
    assert_eq!(running.finish().stdout, "refused\n");
}

#[test]
fn file_lands_where_a_dangling_link_of_the_image_means() {
    let guest = TestGuest::new();
    std::os::unix::fs::symlink("../run/resolve/stub", guest.image("etc/resolv.conf")).unwrap();
    let spec = spec(&guest, "cat /etc/resolv.conf /run/resolve/stub", &[("/etc/resolv.conf", "dns")]);
    let running = guest.create_with_files(&spec, vec![file("dns", "nameserver\n", 0o644)]).unwrap();
    assert_eq!(running.finish().stdout, "nameserver\nnameserver\n");
}

#[test]
fn files_belong_to_root_of_the_user_namespace() {
    let guest = TestGuest::new();
    // Root of the container may make nothing in an image that is not its own.
    std::fs::write(guest.image("etc/hosts"), "").unwrap();
    let mut spec = spec(&guest, "stat -c %u:%g /etc/hosts", &[("/etc/hosts", "hosts")]);
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    let running = guest
        .create_with_files(&spec, vec![file("hosts", "", 0o644)])
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(running.finish().stdout, "0:0\n");
}

#[test]
fn a01_source_that_names_no_file_of_the_request_is_refused() {
    let guest = TestGuest::new();
    for name in ["missing", "", "..", "../../etc/shadow", "hosts/x"] {
        let spec = spec(&guest, "true", &[("/etc/hosts", name)]);
        let result = guest.create_with_files(&spec, vec![file("hosts", "", 0o644)]);
        assert!(result.is_err_and(|error| chain(&error).starts_with("bind source")), "{name}");
    }
    assert_eq!((attached(&guest), std::fs::read_dir(&guest.guest.state_dir).unwrap().count()), (0, 0));
}
