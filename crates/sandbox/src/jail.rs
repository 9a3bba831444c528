//! User ids for jailed VMMs: one for each sandbox of a host, so that no VMM can touch another's processes.
//!
//! Ids [`FIRST_UID`] to [`FIRST_UID`] + [`UIDS`] - 1, group the same number. They lie above what distributions,
//! useradd, subuid ranges and systemd hand out, and below 2^31. A locked file marks an id as taken; the kernel
//! releases the lock when its shim ends in whatever way.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nacre_protocol::vm::JailConfig;
use rustix::fs::{FlockOperation, flock};

/// Lowest id.
pub const FIRST_UID: u32 = 2_000_000_000;

/// How many there are.
pub const UIDS: u32 = 65_536;

/// No id could be had.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The lock files cannot be used.
    #[error("cannot use {path} to allocate a user id")]
    Lock {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// As many sandboxes as ids.
    #[error("all {UIDS} user ids for sandboxes are taken")]
    AllTaken,
}

/// A user id that no other sandbox of this host has. Dropping it gives it back.
#[derive(Debug)]
pub struct JailId {
    uid: u32,
    path: PathBuf,
    _lock: File,
}

impl JailId {
    /// Takes a free id; `hint` spreads sandboxes over the range, so that the first try is usually free.
    ///
    /// # Errors
    /// See [`JailError`].
    pub fn allocate(dir: &Path, hint: u32) -> Result<Self, JailError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| JailError::Lock { path, source }
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed(dir))?;
        for step in 0..UIDS {
            let uid = FIRST_UID + hint.wrapping_add(step) % UIDS;
            let path = dir.join(uid.to_string());
            if let Some(lock) = try_lock(&path).map_err(failed(&path))? {
                return Ok(Self { uid, path, _lock: lock });
            }
        }
        Err(JailError::AllTaken)
    }

    /// What the VMM is told.
    pub fn config(&self) -> JailConfig {
        JailConfig { uid: self.uid, gid: self.uid }
    }

    /// The lock file, for the record on disk.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for JailId {
    fn drop(&mut self) {
        // While the lock is held: whoever locks the file from now on sees that it has no name.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // Its last owner may have removed the name between our open and our lock.
    let named = std::fs::symlink_metadata(path).is_ok_and(|named| {
        file.metadata().is_ok_and(|ours| (named.ino(), named.dev()) == (ours.ino(), ours.dev()))
    });
    Ok(named.then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sandboxes_never_have_the_same_id() {
        let dir = tempfile::tempdir().unwrap();
        let one = JailId::allocate(dir.path(), 7).unwrap();
        let two = JailId::allocate(dir.path(), 7).unwrap();
        assert_eq!(one.config().uid, FIRST_UID + 7);
        assert_eq!(two.config().uid, FIRST_UID + 8);
    }

    #[test]
    fn id_that_was_given_back_is_free_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        drop(JailId::allocate(dir.path(), 7).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(JailId::allocate(dir.path(), 7).unwrap().config().uid, FIRST_UID + 7);
    }

    #[test]
    fn file_that_a_dead_shim_left_does_not_hold_the_id() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join((FIRST_UID + 7).to_string()), "").unwrap();
        assert_eq!(JailId::allocate(dir.path(), 7).unwrap().config().uid, FIRST_UID + 7);
    }

    #[test]
    fn hint_at_the_end_of_the_range_wraps() {
        let dir = tempfile::tempdir().unwrap();
        let _last = JailId::allocate(dir.path(), u32::MAX).unwrap();
        let uid = JailId::allocate(dir.path(), u32::MAX).unwrap().config().uid;
        assert!((FIRST_UID..FIRST_UID + UIDS).contains(&uid));
    }
}
