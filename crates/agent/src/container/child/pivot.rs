//! Attaching the root file system, and making it the root.

use std::os::fd::AsFd;

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use super::Child;
use super::error::StepError;
use super::root::Root;
use crate::container::sys::mount::{ATTR_RDONLY, MountAttr, mount_setattr};

/// Attaches the root file system on top of the agent's own root directory, in this mount namespace alone.
///
/// It needs no directory of its own there, and the agent's tree stays reachable below it until [`enter`].
pub(super) fn attach(child: &mut Child) -> Result<(), StepError> {
    let rootfs = child.init()?.rootfs;
    let rootfs = child.fds.take(rootfs)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|error| StepError::Call("make all mounts private", error))?;
    attach_at_root(&rootfs).map_err(|error| StepError::Call("attach the root file system", error))?;
    child.root = Some(Root::new(rootfs));
    Ok(())
}

/// Attaches a detached mount on top of the root directory.
pub(super) fn attach_at_root(mount: impl AsFd) -> rustix::io::Result<()> {
    move_mount(mount, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Makes the attached file system the root, and lets go of the agent's tree.
pub(super) fn enter(child: &mut Child) -> Result<(), StepError> {
    let plan = &child.init()?.plan;
    let root = child.root()?;
    let attr = MountAttr {
        set: if plan.root_readonly { ATTR_RDONLY } else { 0 },
        clear: 0,
        propagation: plan.root_propagation,
    };
    if !attr.is_empty() {
        mount_setattr(root.dir(), &attr, false)
            .map_err(|error| StepError::Call("set root attributes", error))?;
    }
    swap(root.dir())
}

/// Makes an attached file system the root.
pub(super) fn swap(root: impl AsFd) -> Result<(), StepError> {
    fchdir(root).map_err(|error| StepError::Call("enter the root file system", error))?;
    // Both at once (pivot_root(2), "pivot_root(".", ".")"): the old root ends up on top of the new one.
    pivot_root(".", ".").map_err(|error| StepError::Call("pivot_root", error))?;
    unmount(".", UnmountFlags::DETACH).map_err(|error| StepError::Call("detach the old root", error))?;
    chdir("/").map_err(|error| StepError::Call("enter the root file system", error))
}

/// Exec: the root is the container's since setns(2).
pub(super) fn open_current(child: &mut Child) -> Result<(), StepError> {
    let root = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| StepError::Call("open the root file system", error))?;
    fchdir(root.as_fd()).map_err(|error| StepError::Call("enter the root file system", error))?;
    child.root = Some(Root::new(root));
    Ok(())
}
