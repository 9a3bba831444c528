//! Files that are there whole or not at all.
//!
//! A [`TempFile`] lies in `tmp/` under a lock that its maker holds for as long as it lives. What has no such
//! lock was left by a process that died, and is swept. [`TempFile::persist`] flushes the content and renames, so
//! that a name never stands for half a file, a power cut included.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

/// Longest record that is read.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// A file without a lasting name.
#[derive(Debug)]
pub(crate) struct TempFile {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl TempFile {
    /// Makes an empty file in `dir`, mode 0600, locked.
    pub(crate) fn new(dir: &Path) -> Result<Self, StoreError> {
        loop {
            let path = dir.join(unique_name());
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(|error| StoreError::io("create", &path, error))?;
            file.lock().map_err(|error| StoreError::io("lock", &path, error))?;
            // A sweep may have come between the two calls; then the file has no name any more.
            let links = file.metadata().map_err(|error| StoreError::io("examine", &path, error))?.nlink();
            if links > 0 {
                return Ok(Self { file, path, kept: false });
            }
        }
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies for now.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name, over whatever had it.
    pub(crate) fn persist(self, to: &Path) -> Result<(), StoreError> {
        self.file.sync_all().map_err(|error| StoreError::io("write", to, error))?;
        self.rename(to)?;
        let dir = to.parent().unwrap_or(to);
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| StoreError::io("write", dir, error))
    }

    /// As [`TempFile::persist`], but a power cut may leave it empty: for what a power cut ends anyway.
    pub(crate) fn rename(mut self, to: &Path) -> Result<(), StoreError> {
        fs::rename(&self.path, to).map_err(|error| StoreError::io("create", to, error))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing more can be done here; the next sweep tries again.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Unlinks the files of `dir` that no living process holds; returns how many bytes that freed.
pub(crate) fn sweep(dir: &Path) -> Result<u64, StoreError> {
    let mut freed = 0;
    for path in list_dir(dir)? {
        let opened = OpenOptions::new().read(true).custom_flags(libc_nofollow()).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(StoreError::io("open", &path, error)),
        };
        match file.try_lock() {
            Ok(()) => {
                freed += file.metadata().map(|data| data.len()).unwrap_or(0);
                remove(&path)?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path, error)),
        }
    }
    Ok(freed)
}

/// Whether some process holds the lock of the file.
pub(crate) fn is_held(path: &Path) -> Result<bool, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(StoreError::io("open", path, error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(StoreError::io("lock", path, error)),
    }
}

/// Unlinks one file; that it is gone already is fine.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Full paths of a directory's entries, in order.
pub(crate) fn list_dir(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |error| StoreError::io("list", dir, error);
    let entries = fs::read_dir(dir).map_err(failed)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    paths.sort();
    Ok(paths)
}

/// Makes a directory, mode 0700, parents included.
pub(crate) fn make_dir(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| StoreError::io("create", dir, error))
}

/// Reads a record; none where there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("open", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_RECORD_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| StoreError::io("read", path, error))?;
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|source| StoreError::Damaged { path: path.to_owned(), source })
}

/// Writes bytes under a name, whole or not at all.
pub(crate) fn write_file(tmp: &Path, to: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let temp = TempFile::new(tmp)?;
    temp.file().write_all(bytes).map_err(|error| StoreError::io("write", to, error))?;
    temp.persist(to)
}

/// Writes a record, whole or not at all.
pub(crate) fn write_json<T: Serialize>(tmp: &Path, to: &Path, value: &T) -> Result<(), StoreError> {
    let bytes =
        serde_json::to_vec(value).map_err(|source| StoreError::Damaged { path: to.to_owned(), source })?;
    write_file(tmp, to, &bytes)
}

fn libc_nofollow() -> i32 {
    nix::fcntl::OFlag::O_NOFOLLOW.bits() | nix::fcntl::OFlag::O_NONBLOCK.bits()
}

/// Unique among the living; a collision with the dead only fails the exclusive creation.
fn unique_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_nanos()).unwrap_or(0);
    format!("{}-{nanos:x}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temp_file_is_gone_when_dropped_and_private_while_there() {
        let dir = tempfile::tempdir().unwrap();
        let temp = TempFile::new(dir.path()).unwrap();
        assert_eq!(temp.file().metadata().unwrap().mode() & 0o777, 0o600);
        drop(temp);
        assert!(list_dir(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn sweep_removes_what_the_dead_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let living = TempFile::new(dir.path()).unwrap();
        let left = dir.path().join("left");
        fs::write(&left, "12345").unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 5);
        assert!(!left.exists() && living.path().exists());
    }

    #[test]
    fn i14_sweep_does_not_follow_links() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let canary = outside.path().join("canary");
        fs::write(&canary, "x").unwrap();
        std::os::unix::fs::symlink(&canary, dir.path().join("link")).unwrap();
        assert!(sweep(dir.path()).is_err());
        assert!(canary.exists());
    }

    #[test]
    fn persisted_file_replaces_the_old_one_whole() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("record");
        write_json(dir.path(), &to, &[1, 2, 3]).unwrap();
        write_json(dir.path(), &to, &[4]).unwrap();
        assert_eq!(read_json::<Vec<u8>>(&to).unwrap().unwrap(), [4]);
        assert_eq!(list_dir(dir.path()).unwrap(), [to]);
    }
}
