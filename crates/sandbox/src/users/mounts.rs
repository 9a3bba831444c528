//! Root file systems whose snapshotter has left the mapping of ids to whoever mounts them (containerd's `remap-ids`).

use std::fs::create_dir;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount,
    open_tree,
};
use rustix::process::chdir;

use crate::storage::MAX_MOUNT_DATA;
use crate::sys;

/// Mounts an overlay on a directory, with the ids of its lower directories mapped.
///
/// An overlay takes its lower directories by path, so their mapped copies must be mounted somewhere: on a tmpfs in a mount namespace
/// of a thread's own, which is gone with it. The overlay keeps what it needs of them.
///
/// # Errors
/// What the kernel says: the lower file systems must have id-mapped mounts (Linux 5.19 for overlayfs on them).
pub(crate) fn overlay(point: &Path, flags: MountFlags, options: &[&str], users: &OwnedFd) -> io::Result<()> {
    let made = std::thread::scope(|scope| {
        let mounted = || mapped_overlay(point, flags, options, users);
        let thread = std::thread::Builder::new().spawn_scoped(scope, mounted)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })?;
    Ok(move_mount(&made, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Binds a directory with its ids mapped.
///
/// # Errors
/// What the kernel says.
pub(crate) fn bind(source: &Path, point: &Path, users: &OwnedFd) -> io::Result<()> {
    let copy = mapped(source, users)?;
    Ok(move_mount(&copy, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// A copy of the mount at a path, attached nowhere.
fn mapped(source: &Path, users: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = open_tree(CWD, source, flags)?;
    sys::map_ids(&copy, users)?;
    Ok(copy)
}

/// Changes mount namespace and working directory of the calling thread.
fn mapped_overlay(point: &Path, flags: MountFlags, options: &[&str], users: &OwnedFd) -> io::Result<OwnedFd> {
    const MERGED: &str = "merged";
    sys::leave_mount_namespace()?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let inaccessible = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("nacre", point, "tmpfs", inaccessible, Some(c"mode=700,size=64k"))?;
    chdir(point)?;
    let mut data = Vec::new();
    for option in options {
        let Some(lowers) = option.strip_prefix("lowerdir=") else {
            data.push((*option).to_owned());
            continue;
        };
        let mut names = Vec::new();
        for (number, lower) in lowers.split(':').enumerate() {
            let name = number.to_string();
            create_dir(&name)?;
            let copy = mapped(Path::new(lower), users)?;
            move_mount(&copy, "", CWD, &name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            names.push(name);
        }
        data.push(format!("lowerdir={}", names.join(":")));
    }
    create_dir(MERGED)?;
    let data = data.join(",");
    if data.len() > MAX_MOUNT_DATA {
        return Err(io::Error::other(format!(
            "{} bytes of options are more than the kernel takes",
            data.len()
        )));
    }
    let data = std::ffi::CString::new(data)?;
    mount("overlay", MERGED, "overlay", flags, Some(data.as_c_str()))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, MERGED, flags)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, chown};

    use rustix::mount::{UnmountFlags, unmount};

    use super::*;
    use crate::users::{IdMap, IdMaps};

    fn users() -> Option<OwnedFd> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return None;
        }
        let line = vec![IdMap { container: 0, host: 100_000, size: 65_536 }];
        Some(IdMaps::new(line.clone(), line).unwrap().unwrap().namespace().unwrap())
    }

    fn mounts_below(dir: &Path) -> usize {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().filter(|line| line.contains(dir.to_str().unwrap())).count()
    }

    fn owner(path: &Path) -> u32 {
        fs::metadata(path).unwrap().uid()
    }

    #[test]
    fn layers_of_an_overlay_have_mapped_ids_and_its_own_files_those_that_they_have() {
        let Some(users) = users() else { return };
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a", "b", "upper", "work", "point"] {
            fs::create_dir(at(name)).unwrap();
        }
        for (name, uid) in [("a/root", 0), ("b/seven", 7), ("b/stranger", 70_000), ("upper/own", 100_003)] {
            fs::write(at(name), name).unwrap();
            chown(at(name), Some(uid), Some(uid)).unwrap();
        }
        let options = [
            "index=off".to_owned(),
            format!("workdir={}", at("work").display()),
            format!("upperdir={}", at("upper").display()),
            format!("lowerdir={}:{}", at("a").display(), at("b").display()),
        ];
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        overlay(&at("point"), MountFlags::empty(), &options, &users).unwrap();
        assert_eq!(mounts_below(dir.path()), 1);
        let point = at("point");
        let owners = ["root", "seven", "own", "stranger"].map(|name| owner(&point.join(name)));
        // What a container cannot name belongs to nobody in it.
        assert_eq!(owners, [100_000, 100_007, 100_003, 65_534]);
        // A copy that is changed keeps its owner.
        fs::write(point.join("seven"), "changed").unwrap();
        assert_eq!((owner(&at("upper/seven")), owner(&at("b/seven"))), (100_007, 7));
        unmount(&point, UnmountFlags::empty()).unwrap();
        assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
        // The working directory is still ours, and nothing is left of a mount that fails.
        assert_ne!(std::env::current_dir().unwrap(), point);
        overlay(&point, MountFlags::empty(), &["lowerdir=/nonexistent"], &users).unwrap_err();
        assert_eq!((mounts_below(dir.path()), fs::read_dir(&point).unwrap().count()), (0, 0));
    }

    #[test]
    fn directory_is_bound_with_mapped_ids() {
        let Some(users) = users() else { return };
        let dir = tempfile::tempdir().unwrap();
        let (source, point) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&point).unwrap();
        fs::write(source.join("f"), "").unwrap();
        bind(&source, &point, &users).unwrap();
        assert_eq!((owner(&point.join("f")), owner(&source.join("f"))), (100_000, 0));
        unmount(&point, UnmountFlags::empty()).unwrap();
    }
}
