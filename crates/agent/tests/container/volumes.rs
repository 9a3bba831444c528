//! Volumes that come by value: what a container sees of them, and what a change does.

use std::fs;
use std::os::unix::fs::symlink;

use nacre_agent::container::{VolumeContent, VolumeEntry, VolumeError};
use nacre_protocol::files::FileName;
use serde_json::{Value, json};

use crate::fixture::{TestGuest, chain};

fn name() -> FileName {
    "c1-m0".parse().unwrap()
}

fn entry(path: &str, mode: u32, content: VolumeContent) -> VolumeEntry {
    VolumeEntry { path: path.into(), mode, uid: 0, gid: 2000, content }
}

/// A volume as a kubelet lays it out.
fn version(version: &str, text: &str) -> Vec<VolumeEntry> {
    let data = format!("..{version}");
    vec![
        entry("", 0o2755, VolumeContent::Directory),
        entry(&data, 0o755, VolumeContent::Directory),
        entry(&format!("{data}/key"), 0o440, VolumeContent::File(text.into())),
        entry("..data", 0o777, VolumeContent::Link(data.clone())),
        entry("key", 0o777, VolumeContent::Link("..data/key".into())),
    ]
}

fn spec(guest: &TestGuest, script: &str) -> Value {
    let mut spec = guest.spec(script);
    let mount = json!({"destination": "/v", "type": "bind", "source": "/run/nacre/volumes/c1-m0", "options": ["rbind"]});
    spec["mounts"].as_array_mut().unwrap().push(mount);
    spec
}

#[test]
fn volume_has_the_hosts_content_owners_and_modes_and_cannot_be_written() {
    let guest = TestGuest::new();
    guest.guest.volumes.create(&name(), &version("1", "first")).unwrap();
    let script = "cat /v/key; echo; stat -c %u:%g:%a /v /v/..1/key; touch /v/new 2>/dev/null || echo refused";
    assert_eq!(guest.run(&spec(&guest, script)).stdout, "first\n0:2000:2755\n0:2000:440\nrefused\n");
    guest.guest.volumes.remove(&name());
    // As a share of that name, which there is not.
    let error = guest.refusal(&spec(&guest, "true"));
    assert!(error.starts_with("bind source") && error.contains("shares/c1-m0"), "{error}");
}

#[test]
fn change_reaches_a_container_that_runs_and_leaves_nothing_of_the_old() {
    let guest = TestGuest::new();
    let volumes = &guest.guest.volumes;
    volumes.create(&name(), &version("1", "first")).unwrap();
    let script = "until [ \"$(cat /v/key)\" = second ]; do sleep 0.1; done; until ! [ -e /v/..1 ]; do sleep 0.1; done; ls -A /v";
    let running = guest.create(&spec(&guest, script)).unwrap_or_else(|error| panic!("{}", chain(&error)));
    volumes.change(&name(), &version("2", "second")).unwrap();
    assert_eq!(running.finish().stdout, "..2\n..data\nkey\n");
    assert!(matches!(volumes.create(&name(), &version("1", "")), Err(VolumeError::Exists(_))));
    volumes.remove(&name());
    assert!(matches!(volumes.change(&name(), &version("1", "")), Err(VolumeError::Missing(_))));
}

#[test]
fn entries_may_become_something_else() {
    let guest = TestGuest::new();
    let volumes = &guest.guest.volumes;
    let root = || entry("", 0o755, VolumeContent::Directory);
    let file = |path: &str, text: &str| entry(path, 0o644, VolumeContent::File(text.into()));
    let dir = |path: &str| entry(path, 0o755, VolumeContent::Directory);
    let link = |path: &str| entry(path, 0o777, VolumeContent::Link("a".into()));
    volumes.create(&name(), &[root(), dir("a"), file("a/b", "x"), file("c", "longer")]).unwrap();
    volumes.change(&name(), &[root(), file("a", "y"), file("c", "z"), link("d")]).unwrap();
    volumes.change(&name(), &[root(), file("a", "y"), link("c"), dir("d")]).unwrap();
    let script = "ls -A /v; cat /v/a /v/c; test -d /v/d && ! test -L /v/d && echo d";
    assert_eq!(guest.run(&spec(&guest, script)).stdout, "a\nc\nd\nyyd\n");
}

#[test]
fn a01_links_that_a_container_has_put_into_its_copy_are_not_followed() {
    let guest = TestGuest::new();
    let volumes = &guest.guest.volumes;
    volumes.create(&name(), &version("1", "first")).unwrap();
    let copy = guest.share("../volumes/c1-m0");
    let canary = guest.share("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("key"), "untouched").unwrap();
    // What a container can do that mounts its volume anew.
    fs::remove_dir_all(copy.join("..1")).unwrap();
    symlink(&canary, copy.join("..1")).unwrap();
    assert!(volumes.change(&name(), &version("1", "second")).is_err());
    assert!(volumes.change(&name(), &version("2", "second")).is_err());
    assert_eq!(fs::read_to_string(canary.join("key")).unwrap(), "untouched");
}
