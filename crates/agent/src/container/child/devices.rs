//! Device nodes and the links that every container has in /dev.

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, chownat, fstat, makedev, mknodat, readlinkat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::Child;
use super::error::StepError;
use super::mounts::attach;
use super::root::{Links, Root, split};
use crate::container::plan::{ContainerPlan, DevicePlan, MountSource, NodeKind};

/// The OCI runtime specification's "Default Devices" that are links (config-linux.md).
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

pub(super) fn make_all(child: &mut Child) -> Result<(), StepError> {
    let plan = &child.init()?.plan;
    // With somebody else's /dev bound in, the nodes are that side's business.
    if is_bound(plan, "/dev") {
        return Ok(());
    }
    let devices = plan.devices.clone();
    let has_pts = plan.mounts.iter().any(|mount| mount.destination == "/dev/pts");
    for device in &devices {
        match device.fd {
            Some(fd) => {
                let mount = child.fds.take(fd)?;
                let place = child.root()?.file(&device.path, Links::Refused)?;
                attach(&mount, &place).map_err(StepError::path("mount on", &device.path))?;
            }
            None => make(child.root()?, device)?,
        }
    }
    let dev = child.root()?.directory("/dev", Links::Refused)?;
    for (name, target) in LINKS {
        link(&dev, name, target)?;
    }
    if has_pts { link(&dev, "ptmx", "pts/ptmx") } else { Ok(()) }
}

fn is_bound(plan: &ContainerPlan, path: &str) -> bool {
    let bind = |source: &MountSource| matches!(source, MountSource::Bind { .. });
    plan.mounts.iter().any(|mount| mount.destination == path && bind(&mount.source))
}

fn make(root: &Root, device: &DevicePlan) -> Result<(), StepError> {
    let (dir, name) = split(&device.path);
    let dir = root.directory(dir, Links::Refused)?;
    let kind = match device.kind {
        NodeKind::Char => FileType::CharacterDevice,
        NodeKind::Block => FileType::BlockDevice,
        NodeKind::Fifo => FileType::Fifo,
    };
    let number = makedev(device.major, device.minor);
    match mknodat(&dir, name, kind, Mode::from_raw_mode(device.mode), number) {
        Ok(()) => {}
        Err(Errno::EXIST) => return check_existing(root, device, kind, number),
        Err(error) => return Err(StepError::path("make device", &device.path)(error)),
    }
    if device.uid == 0 && device.gid == 0 {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(StepError::path("set the owner of", &device.path))
}

/// An image may bring the node along; anything else under its name is refused (C04).
fn check_existing(root: &Root, device: &DevicePlan, kind: FileType, number: u64) -> Result<(), StepError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let node = root.open(&device.path, flags, Links::Refused).map_err(|error| match error {
        Errno::LOOP => StepError::Symlink(device.path.clone()),
        error => StepError::path("open", &device.path)(error),
    })?;
    let stat = fstat(&node).map_err(StepError::path("look at", &device.path))?;
    if FileType::from_raw_mode(stat.st_mode) == kind && (kind == FileType::Fifo || stat.st_rdev == number) {
        return Ok(());
    }
    Err(StepError::Unexpected { path: device.path.clone(), expected: "the device of that name" })
}

fn link(dev: &std::os::fd::OwnedFd, name: &str, target: &str) -> Result<(), StepError> {
    for _ in 0..2 {
        match symlinkat(target, dev, name) {
            Err(Errno::EXIST) => {}
            other => return other.map_err(StepError::path("make link", name)),
        }
        match readlinkat(dev, name, Vec::new()) {
            Ok(found) if found.to_bytes() == target.as_bytes() => return Ok(()),
            // Replaced, not followed.
            _ => unlinkat(dev, name, AtFlags::empty()).map_err(StepError::path("replace", name))?,
        }
    }
    Err(StepError::path("make link", name)(Errno::EXIST))
}
