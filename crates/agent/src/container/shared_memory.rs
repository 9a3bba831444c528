//! The shared memory of a pod: one tmpfs, bound into every container whose configuration names it.
//!
//! It stands in for the one that the CRI makes on the host: shared memory between containers of one guest needs no way
//! out of it. Its pages count against the memory of the container that touched them first.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nacre_protocol::ports::SHARED_MEMORY_DIR;
use rustix::fs::{CWD, Mode, OFlags, mkdir, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, move_mount,
};

use super::CreateError;
use super::create::clone_tree;

/// What Docker and the CRI give, in the words of tmpfs.
const SIZE: &str = "64m";

/// The file system, made when it is first asked for.
#[derive(Debug)]
pub struct SharedMemory {
    dir: PathBuf,
    made: Mutex<bool>,
}

impl SharedMemory {
    /// Will be mounted on `dir`, which the first call of [`Self::open`] makes.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, made: Mutex::new(false) }
    }

    /// A copy of its mount, where a bind source names it.
    pub(super) fn open(&self, source: &str) -> Option<Result<OwnedFd, CreateError>> {
        let path = || self.dir.display().to_string();
        let error = |source| CreateError::Source { what: "shared memory", path: path(), source };
        (source == SHARED_MEMORY_DIR).then(|| self.tree().map_err(error))
    }

    fn tree(&self) -> rustix::io::Result<OwnedFd> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !*made {
            self.mount()?;
            *made = true;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        clone_tree(&open(&self.dir, flags, Mode::empty())?, false)
    }

    fn mount(&self) -> rustix::io::Result<()> {
        match mkdir(&self.dir, Mode::RWXU) {
            // A try before failed at the mount.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", "shm")?;
        fsconfig_set_string(&context, "size", SIZE)?;
        fsconfig_set_string(&context, "mode", "1777")?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        move_mount(&mount, "", CWD, &self.dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }
}
