//! What can go wrong in the store.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No room.
    #[error("disk full: no space left for {path}; free some, for example with `nacre system prune`")]
    DiskFull {
        /// The file or folder that did not fit.
        path: PathBuf,
    },
    /// A record that cannot be read.
    #[error("record {path} in the image store is damaged; remove it and pull the image again")]
    Damaged {
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A store made by another version.
    #[error(
        "image store {root} has version {found:?}, this nacre knows {known:?}; use another store or remove it"
    )]
    Version {
        /// The store.
        root: PathBuf,
        /// What it says.
        found: String,
        /// What we know.
        known: &'static str,
    },
    /// A store that somebody else owns.
    #[error("image store {root} belongs to user {owner}, not to the user who runs nacre")]
    Owner {
        /// The store.
        root: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// No home for a store.
    #[error("no place for the image store: neither XDG_DATA_HOME nor HOME is set")]
    NoHome,
    /// No such image.
    #[error("no such image in the store: {0}")]
    NotFound(String),
    /// An id prefix of several images.
    #[error("{0} is the beginning of several image ids; give more digits")]
    AmbiguousId(String),
    /// A layer that is not there, or not as it was stored.
    #[error("layer {diff_id} of image {image} is missing or damaged in the store; pull the image again")]
    LayerMissing {
        /// The image.
        image: Digest,
        /// The layer.
        diff_id: Digest,
    },
    /// Removal refused: containers use the image.
    #[error("image {image} is used by container {container}; remove the container first, or force")]
    InUse {
        /// The image.
        image: Digest,
        /// One of its users.
        container: String,
    },
    /// Removal by id refused: several repositories name it.
    #[error("image {0} has names in several repositories; remove the names, or force")]
    SeveralNames(Digest),
}

impl StoreError {
    /// Sorts an I/O error: a full disk has its own variant.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if is_disk_full(&source) {
            return Self::DiskFull { path: path.to_owned() };
        }
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// Whether "no space left" or "quota exceeded" is among the causes of `error`.
pub(crate) fn is_disk_full(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io_error) = error.downcast_ref::<io::Error>() {
            if matches!(io_error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                return true;
            }
            if io_error.get_ref().is_some_and(|inner| is_disk_full(inner)) {
                return true;
            }
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_is_found_at_any_depth() {
        let deep = io::Error::other(io::Error::other(io::Error::from_raw_os_error(28)));
        assert!(is_disk_full(&deep));
        assert!(matches!(StoreError::io("write", Path::new("x"), deep), StoreError::DiskFull { .. }));
        assert!(!is_disk_full(&io::Error::other("no")));
    }
}
