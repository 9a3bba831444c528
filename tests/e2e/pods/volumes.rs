//! Directories and files of the host, as a kubelet prepares them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nacre_tests::cri::Wish;
use nacre_tests::{Outcome, Stay};

use super::NODE;

/// A mount of the host's, gone with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: PathBuf, arguments: &[&str]) -> Self {
        Outcome::of(Command::new("mount").args(arguments).arg(&path)).ok();
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A ConfigMap as a kubelet lays it out: keys are links through `..data`, which is exchanged in one step.
fn write_map(map: &Path, version: &str, text: &str) {
    let dir = map.join(format!("..{version}"));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("key"), text).unwrap();
    symlink(format!("..{version}"), map.join("..data_tmp")).unwrap();
    fs::rename(map.join("..data_tmp"), map.join("..data")).unwrap();
}

#[test]
fn new_version_of_a_config_map_is_seen_and_not_written() {
    config_map(&NODE.share());
}

pub(crate) fn config_map(stay: &Stay<'_>) {
    let pod = stay.pod();
    let map = stay.dir("map");
    write_map(&map, "1", "first");
    symlink("..data/key", map.join("key")).unwrap();
    let app = pod.start("app", Wish::idle().mount_read_only(&map, "/etc/map"));
    assert_eq!(pod.sh(&app, "cat /etc/map/key").ok().text(), "first");
    for target in ["/etc/map/key", "/etc/map/new"] {
        let written = pod.sh(&app, &format!("echo x > {target}"));
        assert!(written.stderr.contains("Read-only"), "{target}: {written:?}");
    }
    write_map(&map, "2", "second");
    fs::remove_dir_all(map.join("..1")).unwrap();
    pod.sh(&app, "until [ \"$(cat /etc/map/key)\" = second ]; do sleep 0.2; done").ok();
    pod.remove(&app);
}

#[test]
fn read_only_file_is_not_written_even_after_a_remount() {
    let stay = NODE.share();
    let pod = stay.pod();
    let file = stay.file("one-file", "kept");
    let wish = Wish::idle().mount_read_only(&file, "/etc/one-file");
    // With the right to mount, the guest's flag is no hindrance: the host's side is.
    let app = pod.start(
        "app",
        wish.security(|security| {
            security.capabilities.mut_or_insert_default().add_capabilities = vec!["SYS_ADMIN".into()];
            security.seccomp.mut_or_insert_default().profile_type = 1;
        }),
    );
    assert_eq!(pod.sh(&app, "cat /etc/one-file").ok().text(), "kept");
    pod.sh(&app, "mount -o remount,rw,bind /etc/one-file");
    assert_ne!(pod.sh(&app, "echo x > /etc/one-file").status, 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    pod.remove(&app);
}

#[test]
fn termination_message_of_a_container_is_read_on_the_host() {
    let stay = NODE.share();
    let pod = stay.pod();
    let message = stay.file("message", "");
    fs::set_permissions(&message, fs::Permissions::from_mode(0o666)).unwrap();
    let wish =
        Wish::sh("echo why it ended > /dev/termination-log; exit 1").mount(&message, "/dev/termination-log");
    let wish = wish.security(|security| security.run_as_user.mut_or_insert_default().value = 1000);
    assert_eq!(pod.run_to_end("last-words", wish).0.exit_code, 1);
    assert_eq!(fs::read_to_string(&message).unwrap(), "why it ended\n");
}

#[test]
fn containers_of_a_pod_share_an_empty_dir_and_the_host_sees_it() {
    empty_dir(&NODE.share());
}

pub(crate) fn empty_dir(stay: &Stay<'_>) {
    let pod = stay.pod();
    let volume = stay.dir("empty");
    let one = pod.start("one", Wish::idle().mount(&volume, "/out"));
    let two = pod.start("two", Wish::idle().mount(&volume, "/in").mount_read_only(&volume, "/view"));
    pod.sh(&one, "echo a > /out/a; ln -s a /out/b; mkdir -m 0700 /out/d; mkfifo /out/p").ok();
    assert_eq!(pod.sh(&two, "cat /in/b; cat /view/a; stat -c %a /in/d").ok().stdout, "a\na\n700\n");
    assert_eq!(fs::read_to_string(volume.join("b")).unwrap(), "a\n");
    // Kernels agree on a rename and on an end.
    pod.sh(&two, "mv /in/a /in/c && rm /in/b").ok();
    pod.sh(&one, "until [ -e /out/c ] && ! [ -e /out/a ]; do sleep 0.2; done").ok();
    assert!(volume.join("c").exists() && !volume.join("b").exists());
    pod.remove(&one);
    pod.remove(&two);
}

#[test]
fn sub_path_of_a_volume_shows_nothing_beside_it() {
    let stay = NODE.share();
    let pod = stay.pod();
    let volume = stay.dir("whole");
    fs::create_dir_all(volume.join("part/inner")).unwrap();
    fs::write(volume.join("secret"), "no").unwrap();
    fs::write(volume.join("part/file"), "yes\n").unwrap();
    // A kubelet binds the part to a place of its own first.
    let part = volume.join("part").display().to_string();
    let bound = Mounted::at(stay.dir("volume-subpaths"), &["--bind", &part]);
    let app = pod.start("app", Wish::idle().mount(&bound.0, "/part"));
    assert_eq!(
        pod.sh(&app, "cat /part/file; ls /part/..; cat /part/../secret").stdout.lines().next(),
        Some("yes")
    );
    assert_ne!(pod.sh(&app, "cat /part/../secret || find / -xdev -name secret | grep .").status, 0);
    pod.sh(&app, "echo new > /part/inner/new").ok();
    assert_eq!(fs::read_to_string(volume.join("part/inner/new")).unwrap(), "new\n");
    pod.remove(&app);
}
