//! Masked and read-only paths.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use super::Child;
use super::error::StepError;
use super::mounts::{attach, clone_at, filesystem};
use super::root::{Links, Root};
use crate::container::sys::mount::{ATTR_RDONLY, MountAttr, mount_setattr};

const READ_ONLY: MountAttr = MountAttr { set: ATTR_RDONLY, clear: 0, propagation: 0 };

pub(super) fn hide(child: &mut Child) -> Result<(), StepError> {
    for mount in std::mem::take(&mut child.read_only_later) {
        mount_setattr(&mount, &READ_ONLY, false)
            .map_err(|error| StepError::Call("make tmpfs read-only", error))?;
    }
    let plan = &child.init()?.plan;
    let root = child.root()?;
    plan.readonly_paths.iter().try_for_each(|path| make_read_only(root, path))?;
    if plan.masked_paths.is_empty() {
        return Ok(());
    }
    let mut mask = Mask::new()?;
    plan.masked_paths.iter().try_for_each(|path| mask.cover(root, path))
}

/// Binds a path onto itself, read-only with all that is mounted below it.
fn make_read_only(root: &Root, path: &str) -> Result<(), StepError> {
    let Some(place) = existing(root, path)? else { return Ok(()) };
    let error = |error| StepError::path("make read-only", path)(error);
    let mount = clone_at(place.as_fd(), true).map_err(error)?;
    mount_setattr(&mount, &READ_ONLY, true).map_err(error)?;
    attach(&mount, &place).map_err(error)
}

/// What lies over masked paths: /dev/null over files, one empty read-only tmpfs over directories.
struct Mask {
    null: OwnedFd,
    empty: Option<OwnedFd>,
}

impl Mask {
    fn new() -> Result<Self, StepError> {
        // The agent's own, by absolute path: this process's root is still the agent's.
        let null = openat(CWD, "/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(StepError::path("open", "/dev/null"))?;
        Ok(Self { null, empty: None })
    }

    fn cover(&mut self, root: &Root, path: &str) -> Result<(), StepError> {
        let Some(place) = existing(root, path)? else { return Ok(()) };
        let error = |error| StepError::path("mask", path)(error);
        let stat = fstat(&place).map_err(error)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return attach(clone_at(self.null.as_fd(), false).map_err(error)?, &place).map_err(error);
        }
        let mount = match &self.empty {
            // A copy of the first one, which is attached by now; a detached mount cannot be copied.
            Some(first) => clone_at(first.as_fd(), false).map_err(error)?,
            None => {
                let mount = filesystem("tmpfs", "tmpfs", &[("size".into(), Some("0".into()))], path)?;
                mount_setattr(&mount, &READ_ONLY, false).map_err(error)?;
                mount
            }
        };
        attach(&mount, &place).map_err(error)?;
        self.empty.get_or_insert(mount);
        Ok(())
    }
}

/// The path, where there is one.
fn existing(root: &Root, path: &str) -> Result<Option<OwnedFd>, StepError> {
    match root.open(path, OFlags::PATH, Links::InRoot) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(StepError::path("open", path)(error)),
    }
}
