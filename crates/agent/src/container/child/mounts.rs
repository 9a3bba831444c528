//! The configuration's mounts, in its order, each made apart and then attached at a descriptor of its place.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::error::StepError;
use super::root::{Links, PROC_SUPER_MAGIC, Root, SYSFS_MAGIC, is_on};
use super::{Child, copy_up};
use crate::container::plan::{FdRef, MountPlan, MountSource};
use crate::container::sys::mount::{ATTR_RDONLY, MountAttr, mount_setattr};

/// Files of procfs that a bind may cover (what lxcfs and the like provide), as runc has them.
const PROC_FILES: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/uptime",
];

pub(super) fn mount_all(child: &mut Child) -> Result<(), StepError> {
    let mounts = child.init()?.plan.mounts.clone();
    mounts.iter().try_for_each(|mount| mount_one(child, mount))
}

fn mount_one(child: &mut Child, plan: &MountPlan) -> Result<(), StepError> {
    let path = plan.destination.as_str();
    let links = links(plan);
    let mount = match &plan.source {
        MountSource::Bind { fd, .. } | MountSource::Cgroup { fd: fd @ Some(_) } => bind(child, *fd)?,
        MountSource::Cgroup { fd: None } => filesystem("cgroup2", "cgroup", &[], path)?,
        MountSource::Filesystem { kind, source, parameters, .. } => {
            filesystem(kind, source, parameters, path)?
        }
    };
    let root = child.root()?;
    let place = place(root, path, links, &mount)?;
    check_place(&place, plan)?;
    if let MountSource::Filesystem { copy_up: true, .. } = plan.source {
        copy_up::copy(root, path, links, &mount)?;
    }
    attach(&mount, &place).map_err(StepError::path("mount on", path))?;
    let mut attr = plan.attr;
    let is_tmpfs = matches!(&plan.source, MountSource::Filesystem { kind, .. } if kind == "tmpfs");
    let read_only_later = is_tmpfs && attr.set & ATTR_RDONLY != 0;
    if read_only_later {
        attr.set &= !ATTR_RDONLY;
    }
    let set = |attr: &MountAttr, recursive| {
        if attr.is_empty() { Ok(()) } else { mount_setattr(&mount, attr, recursive) }
    };
    set(&attr, false)
        .and_then(|()| set(&plan.recursive_attr, true))
        .map_err(StepError::path("set attributes of", path))?;
    if read_only_later {
        // Mount points and device nodes are still to be made in it.
        child.read_only_later.push(mount);
    }
    Ok(())
}

/// Links are refused where the runtime or the kernel later trusts what lies there (C04, C06).
fn links(plan: &MountPlan) -> Links {
    let of_runtime = ["/proc", "/sys", "/dev"].iter().any(|dir| {
        plan.destination.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    let trusted = match &plan.source {
        MountSource::Filesystem { kind, .. } => {
            matches!(kind.as_str(), "proc" | "sysfs" | "devpts" | "mqueue")
        }
        MountSource::Cgroup { .. } => true,
        MountSource::Bind { .. } => false,
    };
    if of_runtime || trusted { Links::Refused } else { Links::InRoot }
}

/// The mount point: a directory for a directory, a file for anything else.
fn place(root: &Root, path: &str, links: Links, mount: &OwnedFd) -> Result<OwnedFd, StepError> {
    let stat = fstat(mount).map_err(StepError::path("look at the source of", path))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => root.directory(path, links),
        _ => root.file(path, links),
    }
}

/// A link may have led into procfs or sysfs; a mount there would fool whoever reads it (the runtime included).
fn check_place(place: &OwnedFd, plan: &MountPlan) -> Result<(), StepError> {
    let path = plan.destination.as_str();
    let fine = if is_on(place, PROC_SUPER_MAGIC) {
        PROC_FILES.contains(&path) || path == "/proc"
    } else if is_on(place, SYSFS_MAGIC) {
        path == "/sys" || path.starts_with("/sys/")
    } else {
        true
    };
    if fine { Ok(()) } else { Err(StepError::InsideProc(path.to_owned())) }
}

fn bind(child: &mut Child, fd: Option<FdRef>) -> Result<OwnedFd, StepError> {
    child.fds.take(fd.ok_or(StepError::Orders("a bind source is missing"))?)
}

/// A new instance of a file system, attached nowhere.
pub(super) fn filesystem(
    kind: &str,
    source: &str,
    parameters: &[(String, Option<String>)],
    path: &str,
) -> Result<OwnedFd, StepError> {
    let error = |action: &'static str| {
        let path = format!("{kind} for {path}");
        move |source: Errno| StepError::Path { action, path, source }
    };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(error("open"))?;
    fsconfig_set_string(&context, "source", source).map_err(error("set source of"))?;
    for (key, value) in parameters {
        let set = match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, key.as_str()),
        };
        set.map_err(|source| StepError::Path {
            action: "set option",
            path: format!("{key} of {kind} for {path}"),
            source,
        })?;
    }
    fsconfig_create(&context).map_err(error("mount"))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(error("mount"))
}

/// Attaches a detached mount at an O_PATH descriptor.
pub(super) fn attach(mount: impl AsFd, place: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags)
}

/// A detached copy of the mount at a descriptor.
pub(super) fn clone_at(file: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(file, "", flags)
}
