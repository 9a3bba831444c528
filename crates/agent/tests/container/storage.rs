//! Root file systems of layers on a disk.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nacre_agent::container::{LayerExtent, RootfsSource};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::Value;
use tempfile::TempDir;

use crate::fixture::{TestGuest, chain, run};

/// A loop device that stands for the virtio-blk disk, with EROFS layers on it.
///
/// The test's thread sees a /sys/block of its own, in which the device has a serial, and a /dev of the kernel's.
struct LayerDisk {
    dir: TempDir,
    layers: Vec<LayerExtent>,
    device: Option<PathBuf>,
}

impl LayerDisk {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), layers: Vec::new(), device: None }
    }

    /// Adds a layer whose content `fill` makes.
    fn layer(mut self, fill: impl FnOnce(&Path)) -> Self {
        let tree = tempfile::tempdir_in(self.dir.path()).unwrap();
        fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fill(tree.path());
        let blob = self.dir.path().join("blob");
        run(Command::new("mkfs.erofs").arg(&blob).arg(tree.path()));
        let bytes = fs::read(&blob).unwrap();
        let mut disk = File::options().create(true).append(true).open(self.dir.path().join("disk")).unwrap();
        let offset_bytes = disk.stream_position().unwrap().max(disk.metadata().unwrap().len());
        disk.write_all(&bytes).unwrap();
        let length_bytes = bytes.len().next_multiple_of(512) as u64;
        disk.set_len(offset_bytes + length_bytes).unwrap();
        self.layers.push(LayerExtent { offset_bytes, length_bytes });
        fs::remove_file(blob).unwrap();
        self
    }

    /// Attaches it to the guest of this thread under a serial.
    fn attach(mut self, serial: &str) -> Self {
        let disk = self.dir.path().join("disk");
        let output = run(Command::new("losetup").args(["-P", "-f", "--show", "-r"]).arg(disk));
        let device = PathBuf::from(output.trim());
        let none = MsFlags::empty();
        // EBUSY: it is there.
        let _ = mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), none, None::<&str>);
        mount(Some("block"), "/sys/block", Some("tmpfs"), none, None::<&str>).unwrap();
        let sys = Path::new("/sys/block").join(device.file_name().unwrap());
        fs::create_dir(&sys).unwrap();
        fs::write(sys.join("serial"), serial).unwrap();
        self.device = Some(device);
        self
    }

    fn source(&self, disk_id: &str, upper_limit_bytes: u64) -> RootfsSource {
        RootfsSource::Layered { disk_id: disk_id.into(), layers: self.layers.clone(), upper_limit_bytes }
    }

    fn partitions(&self) -> usize {
        let name = self.device.as_ref().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let lines = fs::read_to_string("/proc/partitions").unwrap();
        lines.lines().filter(|line| line.contains(&format!(" {name}p"))).count()
    }
}

impl Drop for LayerDisk {
    fn drop(&mut self) {
        if let Some(device) = &self.device {
            run(Command::new("losetup").arg("-d").arg(device));
        }
    }
}

/// What a container needs to run a shell of this machine's /usr.
fn base(tree: &Path) {
    for name in ["usr", "proc", "sys", "dev", "tmp", "etc", "old"] {
        fs::create_dir(tree.join(name)).unwrap();
    }
    for name in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), tree.join(name)).unwrap();
    }
    fs::write(tree.join("etc/bottom"), "bottom\n").unwrap();
    fs::write(tree.join("etc/both"), "bottom\n").unwrap();
    fs::write(tree.join("etc/gone"), "bottom\n").unwrap();
    fs::write(tree.join("old/file"), "bottom\n").unwrap();
}

fn run_in(guest: &TestGuest, disk: &LayerDisk, limit: u64, spec: &Value) -> crate::fixture::Ended {
    let made = guest.create_from(spec, disk.source("layers", limit));
    made.unwrap_or_else(|error| panic!("{}", chain(&error))).finish()
}

#[test]
fn layers_are_overlaid_with_whiteouts_and_leave_nothing() {
    let guest = TestGuest::new();
    let disk = LayerDisk::new()
        .layer(base)
        .layer(|tree| {
            fs::create_dir(tree.join("etc")).unwrap();
            fs::write(tree.join("etc/both"), "top\n").unwrap();
            mknod(&tree.join("etc/gone"), SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap();
            fs::set_permissions(tree, fs::Permissions::from_mode(0o711)).unwrap();
        })
        .attach("layers");
    let script = "cat /etc/bottom /etc/both; cat /etc/gone 2>/dev/null; echo $?; echo new > /etc/bottom; cat /etc/bottom; \
        stat -c %a /; cat /old/file";
    for _ in 0..2 {
        let ended = run_in(&guest, &disk, 0, &guest.spec(script));
        assert_eq!(ended.stdout, "bottom\ntop\n1\nnew\n711\nbottom\n", "{ended:?}");
        assert_eq!(disk.partitions(), 0);
    }
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!table.contains("erofs") && !table.contains(" overlay "), "{table}");
    assert_eq!(fs::read_dir(&guest.guest.state_dir).unwrap().count(), 0);
}

#[test]
fn many_layers_are_more_than_a_disk_has_minors() {
    let guest = TestGuest::new();
    let mut disk = LayerDisk::new().layer(base);
    for number in 0..40 {
        disk = disk.layer(|tree| fs::write(tree.join(format!("file{number}")), "x").unwrap());
    }
    let disk = disk.attach("layers");
    assert_eq!(run_in(&guest, &disk, 0, &guest.spec("ls /file* | wc -l")).stdout, "40\n");
    assert_eq!(disk.partitions(), 0);
}

#[test]
fn upper_directory_has_its_limit() {
    let guest = TestGuest::new();
    let disk = LayerDisk::new().layer(base).attach("layers");
    let script = "head -c 3000000 /dev/zero > /tmp/x; echo $?; stat -c %s /tmp/x";
    let ended = run_in(&guest, &disk, 2 << 20, &guest.spec(script));
    let size: u64 = ended.stdout.lines().nth(1).unwrap().parse().unwrap();
    assert!(ended.stdout.starts_with("1\n") && size <= 2 << 20, "{ended:?}");
}

#[test]
fn failed_layer_takes_the_others_back() {
    let guest = TestGuest::new();
    let mut disk = LayerDisk::new().layer(base).layer(|_| {});
    disk.layers.swap(0, 1);
    disk.layers[1].offset_bytes += 512;
    let disk = disk.attach("layers");
    let error = guest.create_from(&guest.spec("true"), disk.source("layers", 0)).err().unwrap();
    assert!(error.is_invalid(), "{}", chain(&error));
    assert_eq!(disk.partitions(), 0);
    assert_eq!(fs::read_dir(&guest.guest.state_dir).unwrap().count(), 0);
}

#[test]
fn disk_that_does_not_come_is_named() {
    let guest = TestGuest::new();
    let disk = LayerDisk::new().layer(base).attach("layers");
    let error = guest.create_from(&guest.spec("true"), disk.source("another", 0)).err().unwrap();
    assert!(
        error.is_invalid() && chain(&error).contains("no disk with serial \"another\""),
        "{}",
        chain(&error)
    );
}

#[test]
fn layers_that_cannot_be_are_refused_before_any_disk_is_looked_for() {
    let guest = TestGuest::new();
    let mut disk = LayerDisk::new();
    disk.layers.push(LayerExtent { offset_bytes: 1, length_bytes: 512 });
    let error = guest.create_from(&guest.spec("true"), disk.source("layers", 0)).err().unwrap();
    assert!(error.is_invalid() && chain(&error).contains("multiple of 512"), "{}", chain(&error));
}

#[test]
fn share_names_are_one_component() {
    let guest = TestGuest::new();
    for name in ["", ".", "..", "a/b", "../state", "nothing"] {
        let source = RootfsSource::Shared { name: name.into() };
        assert!(guest.create_from(&guest.spec("true"), source).err().unwrap().is_invalid(), "{name:?}");
    }
}

#[test]
fn set_user_id_works_in_a_shared_root() {
    let guest = TestGuest::new();
    fs::copy("/usr/bin/id", guest.image("id")).unwrap();
    fs::set_permissions(guest.image("id"), fs::Permissions::from_mode(0o4755)).unwrap();
    let nosuid = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID;
    let shares = &guest.guest.shares_dir;
    mount(Some(shares), shares, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>).unwrap();
    mount(None::<&str>, shares, None::<&str>, nosuid, None::<&str>).unwrap();
    assert_eq!(fs::metadata(guest.image("id")).unwrap().uid(), 0);
    let mut spec = guest.spec("/id -u");
    spec["process"]["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
    spec["process"]["noNewPrivileges"] = serde_json::json!(false);
    assert_eq!(guest.run(&spec).stdout, "0\n");
}
