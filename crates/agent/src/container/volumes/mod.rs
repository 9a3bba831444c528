//! Volumes that came by value: a tmpfs of the guest for each, which the host keeps as its own directory is.
//!
//! A kubelet changes a volume of files by exchanging one link, and programs wait for that with inotify. [`sync`] does the
//! same steps here, in the same order, so that they see the same events. Containers get the mount read-only. One that can
//! mount may write to its copy all the same: nothing of that leaves the guest, and no link of it is followed here.

mod entries;
mod sync;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nacre_protocol::files::FileName;
use nacre_protocol::volumes::VOLUMES_DIR;
use rustix::fs::{CWD, Mode, OFlags, mkdir, open, rmdir};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::CreateError;
use super::create::clone_tree;
use super::sys::mount::{ATTR_RDONLY, MountAttr, mount_setattr};
use entries::{Known, check};
pub use entries::{VolumeContent, VolumeEntry};

/// Room for all files of a volume twice, each of them rounded up to pages: the old are there until the new are.
const SIZE: &str = "16m";
const INODES: &str = "4096";

/// A volume that cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A list of entries that cannot be.
    #[error("entries of a volume: {0}")]
    Entries(&'static str),
    /// A change of one that was removed, or never made.
    #[error("there is no volume {0}")]
    Missing(String),
    /// Made twice.
    #[error("volume {0} exists")]
    Exists(String),
    /// A call failed.
    #[error("{action} {path} of a volume")]
    Path {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// All volumes of the guest.
#[derive(Debug)]
pub struct Volumes {
    dir: PathBuf,
    volumes: Mutex<BTreeMap<String, Volume>>,
}

#[derive(Debug)]
struct Volume {
    root: OwnedFd,
    /// What was put there.
    known: BTreeMap<String, Known>,
}

impl Volumes {
    /// They will be mounted below `dir`, which the first one makes.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, volumes: Mutex::default() }
    }

    /// Makes a volume, with this content.
    ///
    /// # Errors
    /// [`VolumeError`]; nothing of it is left.
    pub fn create(&self, name: &FileName, entries: &[VolumeEntry]) -> Result<(), VolumeError> {
        check(entries)?;
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        if volumes.contains_key(name.as_str()) {
            return Err(VolumeError::Exists(name.to_string()));
        }
        let root = self.mount(name).map_err(failed("mount", name.as_str()))?;
        let mut volume = Volume { root, known: BTreeMap::new() };
        if let Err(error) = sync::apply(&mut volume, entries) {
            self.unmount(name.as_str());
            return Err(error);
        }
        volumes.insert(name.to_string(), volume);
        Ok(())
    }

    /// Makes a volume's content this.
    ///
    /// # Errors
    /// [`VolumeError`]; some of the entries may be changed then, and the next call changes the others.
    pub fn change(&self, name: &FileName, entries: &[VolumeEntry]) -> Result<(), VolumeError> {
        check(entries)?;
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let volume = volumes.get_mut(name.as_str());
        sync::apply(volume.ok_or_else(|| VolumeError::Missing(name.to_string()))?, entries)
    }

    /// Forgets a volume, where there is one of this name.
    pub fn remove(&self, name: &FileName) {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        if volumes.remove(name.as_str()).is_some() {
            self.unmount(name.as_str());
        }
    }

    /// A copy of the mount that a bind source names; none: it names no volume.
    pub(super) fn open(&self, source: &str) -> Option<Result<OwnedFd, CreateError>> {
        let name = Path::new(source).strip_prefix(VOLUMES_DIR).ok()?.to_str()?;
        let volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let volume = volumes.get(name)?;
        let read_only = MountAttr { set: ATTR_RDONLY, ..MountAttr::default() };
        let copied = clone_tree(&volume.root, false)
            .and_then(|mount| mount_setattr(&mount, &read_only, false).map(|()| mount));
        let path = source.to_owned();
        Some(copied.map_err(|source| CreateError::Source { what: "volume", path, source }))
    }

    /// The path of the share that stands in for a volume which the host could not read.
    pub(super) fn or_share(&self, source: &str, shares: &Path) -> String {
        let name = Path::new(source).strip_prefix(VOLUMES_DIR);
        name.map_or_else(|_| source.to_owned(), |name| shares.join(name).to_string_lossy().into_owned())
    }

    fn mount(&self, name: &FileName) -> rustix::io::Result<OwnedFd> {
        let point = self.dir.join(name.as_str());
        for dir in [&self.dir, &point] {
            match mkdir(dir, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        let mounted = tmpfs().and_then(|mount| {
            move_mount(&mount, "", CWD, &point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            open(&point, flags, Mode::empty())
        });
        if mounted.is_err() {
            self.unmount(name.as_str());
        }
        mounted
    }

    fn unmount(&self, name: &str) {
        let point = self.dir.join(name);
        // EINVAL: nothing is mounted there.
        let _ = unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        if let Err(error) = rmdir(&point) {
            tracing::warn!(error = &error as &dyn std::error::Error, "mount point of a volume stays");
        }
    }
}

fn tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("source", "volume"), ("size", SIZE), ("nr_inodes", INODES), ("mode", "0755")] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

fn failed(action: &'static str, path: &str) -> impl FnOnce(Errno) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Path { action, path, source }
}
