//! Root file systems, as mounts that are attached nowhere yet.
//!
//! The agent makes the mount and hands it to the child, which attaches it in its own mount namespace. Nothing stays
//! in the agent's namespace, so the file system goes when the container's last process does; only partitions of
//! a disk are left to take back ([`Teardown`]).

mod disk;
mod layered;
mod whole;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nacre_protocol::id::ContainerId;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;

use super::create::clone_tree;
use super::sys::mount::{ATTR_NOEXEC, ATTR_NOSUID, MountAttr, mount_setattr};
use super::{Guest, RootfsSource};
use disk::{Disk, Partitions};

/// A root file system that could not be made or taken down.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A list of layers that cannot be.
    #[error("layers: {0}")]
    Layers(&'static str),
    /// A disk id or share name that cannot be.
    #[error("{0:?} is not the name of a disk or share")]
    Name(String),
    /// The disk did not appear.
    #[error("no disk with serial {0:?} appeared")]
    NoDisk(String),
    /// A call on the disk, a layer or the share failed.
    #[error("{action} {path}")]
    Path {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A mount failed.
    #[error("mount {kind} of {what}")]
    Mount {
        /// File system type.
        kind: &'static str,
        /// Which one.
        what: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A partition could not be made or removed.
    #[error("{action} partition {number} of {disk}")]
    Partition {
        /// What was tried.
        action: &'static str,
        /// Its number.
        number: u16,
        /// The disk's name.
        disk: String,
        /// Why.
        #[source]
        source: Errno,
    },
}

impl RootfsError {
    /// Whether the request is to blame.
    pub(crate) fn is_invalid(&self) -> bool {
        match self {
            Self::Layers(_) | Self::Name(_) | Self::NoDisk(_) => true,
            Self::Path { source, .. } => *source == Errno::NOENT,
            Self::Mount { source, .. } => *source == Errno::INVAL,
            // EBUSY: it overlaps the one before.
            Self::Partition { source, action, .. } => {
                *source == Errno::INVAL || (*action == "add" && *source == Errno::BUSY)
            }
        }
    }
}

/// A root file system to attach.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The detached mount.
    pub(super) mount: OwnedFd,
    /// What it leaves behind.
    pub(super) teardown: Teardown,
}

/// What must be taken back once no mount of the root file system is left. Dropping it takes nothing back.
#[derive(Debug, Default)]
pub(super) struct Teardown {
    partitions: Option<Partitions>,
    /// Disks that are used whole.
    disks: Vec<Disk>,
}

impl Teardown {
    /// Takes it back; repeating it goes on where it failed.
    ///
    /// # Errors
    /// [`RootfsError::Partition`] where a mount still holds one.
    pub(super) fn run(&mut self) -> Result<(), RootfsError> {
        if let Some(partitions) = &mut self.partitions {
            partitions.delete()?;
        }
        self.partitions = None;
        while let Some(disk) = self.disks.last() {
            disk.release()?;
            self.disks.pop();
        }
        Ok(())
    }

    /// Finds a disk that a container uses as it is, and gives its number.
    ///
    /// # Errors
    /// [`RootfsError::NoDisk`] where none appears.
    pub(super) fn add_disk(&mut self, id: &str) -> Result<(u32, u32), RootfsError> {
        let disk = Disk::wait_for(id)?;
        let number = disk.number()?;
        self.disks.push(disk);
        Ok(number)
    }
}

/// Makes the mount for a source.
///
/// # Errors
/// [`RootfsError`]; nothing is left then.
pub(super) fn prepare(
    guest: &Guest,
    id: &ContainerId,
    source: &RootfsSource,
) -> Result<Prepared, RootfsError> {
    match source {
        RootfsSource::Layered { disk_id, layers, upper_limit_bytes } => {
            layered::prepare(guest, id, disk_id, layers, *upper_limit_bytes)
        }
        RootfsSource::Disk { disk_id, read_only } => whole::prepare(disk_id, *read_only),
        RootfsSource::Shared { name } => shared(guest, name),
    }
}

/// A directory of the share, bound. The share itself is mounted without set-user-id; a container's root has it.
fn shared(guest: &Guest, name: &str) -> Result<Prepared, RootfsError> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(RootfsError::Name(name.to_owned()));
    }
    let path = guest.shares_dir.join(name);
    let error = |action| {
        let path = path.clone();
        move |source| RootfsError::Path { action, path, source }
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let shares = open(&guest.shares_dir, flags, Mode::empty()).map_err(error("open"))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let dir = openat2(&shares, name, flags, Mode::empty(), resolve).map_err(error("open"))?;
    let mount = clone_tree(&dir, false).map_err(error("clone the mount of"))?;
    let attr = MountAttr { clear: ATTR_NOSUID | ATTR_NOEXEC, ..MountAttr::default() };
    mount_setattr(&mount, &attr, false).map_err(error("set mount attributes of"))?;
    Ok(Prepared { mount, teardown: Teardown::default() })
}
