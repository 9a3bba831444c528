//! EROFS layers of one disk, overlaid under a tmpfs.
//!
//! ```text
//! disk ── partition 1..n ── erofs, read-only ──┐ lowerdir+ (top first)
//! tmpfs with upper/ and work/ ─────────────────┴── overlay ──> detached mount
//! ```
//!
//! Overlayfs wants its layers attached somewhere while it is mounted, and keeps private clones of them. So they
//! are attached below the container's state directory, and detached again as soon as the overlay exists.
//!
//! Layers may hold device nodes and set-user-id files: which devices work is the cgroup program's decision.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nacre_protocol::id::ContainerId;
use rustix::fs::{CWD, Mode, OFlags, fchmod, fchown, mkdir, open, rmdir, stat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use rustix::process::{Gid, Uid};

use super::disk::{Disk, Partitions};
use super::{Prepared, RootfsError, Teardown};
use crate::container::{Guest, LayerExtent};

/// OCI images have 127 layers at most in practice (Docker's own limit), and overlayfs takes 500.
const MAX_LAYERS: usize = 127;
const SECTOR: u64 = 512;

pub(super) fn prepare(
    guest: &Guest,
    id: &ContainerId,
    disk_id: &str,
    layers: &[LayerExtent],
    upper_limit_bytes: u64,
) -> Result<Prepared, RootfsError> {
    check(layers)?;
    let partitions = Partitions::add(Disk::wait_for(disk_id)?, layers)?;
    let scratch = Scratch::create(&guest.state_dir, id);
    let mount = scratch.and_then(|mut scratch| assemble(&mut scratch, &partitions, upper_limit_bytes));
    let mut teardown = Teardown { partitions: Some(partitions), ..Teardown::default() };
    match mount {
        Ok(mount) => Ok(Prepared { mount, teardown }),
        Err(error) => {
            teardown.run()?;
            Err(error)
        }
    }
}

/// Sectors, in bounds and apart from each other; the kernel checks them against the disk.
fn check(layers: &[LayerExtent]) -> Result<(), RootfsError> {
    if layers.is_empty() || layers.len() > MAX_LAYERS {
        return Err(RootfsError::Layers("their number is not in 1..=127"));
    }
    for layer in layers {
        let LayerExtent { offset_bytes, length_bytes } = *layer;
        if !offset_bytes.is_multiple_of(SECTOR) || !length_bytes.is_multiple_of(SECTOR) || length_bytes == 0 {
            return Err(RootfsError::Layers(
                "an offset or length is not a multiple of 512, or a length is 0",
            ));
        }
        if offset_bytes.checked_add(length_bytes).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(RootfsError::Layers("one ends beyond any disk"));
        }
    }
    Ok(())
}

fn assemble(
    scratch: &mut Scratch,
    partitions: &Partitions,
    upper_limit_bytes: u64,
) -> Result<OwnedFd, RootfsError> {
    let mut lower = Vec::new();
    for (at, node) in partitions.nodes().enumerate() {
        let layer = mount_layer(&node)?;
        lower.push(scratch.attach(&layer, &format!("lower{at}"))?);
    }
    let tmpfs = mount_tmpfs(upper_limit_bytes)?;
    let writable = scratch.attach(&tmpfs, "writable")?;
    let top = lower.last().ok_or(RootfsError::Layers("there is none"))?;
    let (upper, work) = upper_dirs(&writable, top)?;

    let overlay = |source| RootfsError::Mount { kind: "overlay", what: "the layers".into(), source };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(overlay)?;
    let set = |key: &str, path: &Path| fsconfig_set_string(&context, key, path);
    // The first one that is added is the topmost.
    lower.iter().rev().try_for_each(|dir| set("lowerdir+", dir)).map_err(overlay)?;
    set("upperdir", &upper).and_then(|()| set("workdir", &work)).map_err(overlay)?;
    fsconfig_set_string(&context, "source", "overlay").map_err(overlay)?;
    fsconfig_create(&context).map_err(overlay)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(overlay)
}

fn mount_layer(node: &Path) -> Result<OwnedFd, RootfsError> {
    let error = |source| RootfsError::Mount { kind: "erofs", what: node.display().to_string(), source };
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(error)?;
    fsconfig_set_string(&context, "source", node).map_err(error)?;
    fsconfig_set_flag(&context, "ro").map_err(error)?;
    fsconfig_create(&context).map_err(error)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).map_err(error)
}

fn mount_tmpfs(limit_bytes: u64) -> Result<OwnedFd, RootfsError> {
    let error = |source| RootfsError::Mount { kind: "tmpfs", what: "the upper directory".into(), source };
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(error)?;
    if limit_bytes > 0 {
        fsconfig_set_string(&context, "size", limit_bytes.to_string()).map_err(error)?;
    }
    fsconfig_set_string(&context, "mode", "0755").map_err(error)?;
    fsconfig_create(&context).map_err(error)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(error)
}

/// `upper` and `work`; the root of the overlay gets its mode and owner from `upper`, so they are the top layer's.
fn upper_dirs(writable: &Path, top: &Path) -> Result<(PathBuf, PathBuf), RootfsError> {
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    let error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| RootfsError::Path { action, path, source }
    };
    for dir in [&upper, &work] {
        mkdir(dir, Mode::from_raw_mode(0o755)).map_err(error("make", dir))?;
    }
    let root = stat(top).map_err(error("look at", top))?;
    let dir = open(&upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(error("open", &upper))?;
    let (uid, gid) = (Uid::from_raw(root.st_uid), Gid::from_raw(root.st_gid));
    fchown(&dir, Some(uid), Some(gid)).map_err(error("set the owner of", &upper))?;
    fchmod(&dir, Mode::from_raw_mode(root.st_mode & 0o7777)).map_err(error("set the mode of", &upper))?;
    Ok((upper, work))
}

/// A directory in which mounts are attached for a moment. Dropping it detaches and removes all.
struct Scratch {
    dir: PathBuf,
    points: Vec<PathBuf>,
}

impl Scratch {
    fn create(state_dir: &Path, id: &ContainerId) -> Result<Self, RootfsError> {
        let dir = state_dir.join(id.as_str());
        mkdir(&dir, Mode::from_raw_mode(0o700)).map_err(|source| RootfsError::Path {
            action: "make",
            path: dir.clone(),
            source,
        })?;
        Ok(Self { dir, points: Vec::new() })
    }

    fn attach(&mut self, mount: &OwnedFd, name: &str) -> Result<PathBuf, RootfsError> {
        let point = self.dir.join(name);
        let error = |action| {
            let path = point.clone();
            move |source: Errno| RootfsError::Path { action, path, source }
        };
        mkdir(&point, Mode::from_raw_mode(0o700)).map_err(error("make"))?;
        self.points.push(point.clone());
        move_mount(mount, "", CWD, &point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(error("mount on"))?;
        Ok(point)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for point in self.points.iter().rev() {
            // EINVAL: nothing is mounted there.
            let _ = unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            let _ = rmdir(point);
        }
        let _ = rmdir(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(offset_bytes: u64, length_bytes: u64) -> LayerExtent {
        LayerExtent { offset_bytes, length_bytes }
    }

    #[test]
    fn layers_are_whole_sectors_of_a_possible_disk() {
        assert!(check(&[layer(0, 512), layer(512, 1024)]).is_ok());
        let too_many = vec![layer(0, 512); 128];
        for bad in [
            &[][..],
            &too_many,
            &[layer(1, 512)],
            &[layer(0, 0)],
            &[layer(0, 513)],
            &[layer(u64::MAX - 511, 512)],
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
