//! Small files that came with the request, as sources of the container's bind mounts.
//!
//! They stand on a tmpfs of the container's own, so that what it writes to them cannot fill anything of the agent's.
//! The tmpfs is attached only while the mounts are cloned; from then on the clones hold it, and it goes with the
//! container's mount namespace, or with a creation that fails. The names stay, so that the container may mount over its
//! files.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nacre_protocol::files::{FILES_DIR, FileName};
use nacre_protocol::id::ContainerId;
use rustix::fs::{CWD, Mode, OFlags, fchmod, fchown, mkdir, openat, rmdir};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use rustix::process::{Gid, Uid};

use super::create::clone_tree;
use super::plan::NamespacesPlan;
use super::{CreateError, Guest};

/// What the files may grow to, all together.
const SIZE: &str = "4m";

/// A small file that came with the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleFile {
    /// Names it under [`FILES_DIR`].
    pub name: FileName,
    /// Its bytes.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// The files of one creation. Dropping the value detaches them from the agent's own mounts.
#[derive(Debug)]
pub(super) struct Files {
    point: PathBuf,
    root: OwnedFd,
}

impl Files {
    /// Makes the files, where there are any.
    pub(super) fn create(
        guest: &Guest,
        id: &ContainerId,
        files: &[BundleFile],
        namespaces: &NamespacesPlan,
    ) -> Result<Option<Self>, CreateError> {
        if files.is_empty() {
            return Ok(None);
        }
        let point = guest.state_dir.join(format!("{id}:files"));
        let root = tmpfs().map_err(error("file system for the files of", id.as_str()))?;
        mkdir(&point, Mode::RWXU).map_err(error("directory", &point.to_string_lossy()))?;
        let this = Self { point, root };
        move_mount(&this.root, "", CWD, &this.point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(error("mount point", &this.point.to_string_lossy()))?;
        let owner = namespaces.root();
        for file in files {
            this.write(file, owner).map_err(error("file", file.name.as_str()))?;
        }
        Ok(Some(this))
    }

    fn write(&self, file: &BundleFile, (uid, gid): (u32, u32)) -> rustix::io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(&self.root, file.name.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        fchown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        // Not by openat, which goes by the agent's umask.
        fchmod(&made, Mode::from_raw_mode(file.mode))?;
        let mut made = File::from(made);
        made.write_all(&file.content).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// The file that a bind source names; none: it names no file of a request at all.
    pub(super) fn open(files: Option<&Self>, source: &str) -> Option<Result<OwnedFd, CreateError>> {
        let name = Path::new(source).strip_prefix(FILES_DIR).ok()?;
        let found = || {
            let name: FileName = name.to_str().unwrap_or_default().parse().map_err(|_| Errno::INVAL)?;
            let root = &files.ok_or(Errno::NOENT)?.root;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            clone_tree(&openat(root, name.as_str(), flags, Mode::empty())?, false)
        };
        Some(found().map_err(error("bind source", source)))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // EINVAL: a creation that failed before it was mounted.
        let _ = unmount(&self.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        if let Err(error) = rmdir(&self.point) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "mount point of a creation's files stays");
        }
    }
}

fn tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "files")?;
    fsconfig_set_string(&context, "size", SIZE)?;
    fsconfig_set_string(&context, "mode", "0755")?;
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

fn error(what: &'static str, path: &str) -> impl FnOnce(Errno) -> CreateError {
    let path = path.to_owned();
    move |source| CreateError::Source { what, path, source }
}
