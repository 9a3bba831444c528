//! The virtio-fs share.

use std::io;
use std::path::Path;

use rustix::fs::statfs;
use rustix::mount::{MountFlags, mount};

/// `f_type` of FUSE file systems, virtio-fs among them (linux/magic.h).
const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;

/// A share that cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// Longer than virtio 1.2, section 5.11.4 allows, or not plain text.
    #[error("{0:?} is not a virtio-fs tag")]
    Tag(String),
    /// The kernel refused: no such device, or its server does not answer.
    #[error("cannot mount the virtio-fs share {tag:?}")]
    Mount {
        /// Its tag.
        tag: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Mounts the share at `target`, which it creates; where it is mounted already (a clone of a guest is greeted again),
/// nothing changes. Blocks while the host's file server does.
///
/// # Errors
/// [`ShareError`].
pub fn mount_shares(tag: &str, target: &Path) -> Result<(), ShareError> {
    if tag.is_empty() || tag.len() > 36 || !tag.bytes().all(|c| c.is_ascii_graphic()) {
        return Err(ShareError::Tag(tag.to_owned()));
    }
    let failed = |source| ShareError::Mount { tag: tag.to_owned(), source };
    match std::fs::create_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    if statfs(target)
        .is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|magic| magic == FUSE_SUPER_MAGIC))
    {
        return Ok(());
    }
    // Root file systems live in it, so set-uid files keep their meaning; device nodes of the host have none here.
    mount(tag, target, "virtiofs", MountFlags::NODEV, None).map_err(|error| failed(error.into()))
}
