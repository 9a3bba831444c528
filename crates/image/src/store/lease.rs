//! Leases: what keeps an image from being removed while it is needed.
//!
//! A container holds one from its creation to its removal; its maker releases it. A pull holds one on the layers
//! that it counts on, from before it looks for them until their image is recorded; that one is a locked file,
//! so it ends with the process.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::files::{self, TempFile};
use super::{Image, Store, StoreError};
use crate::digest::Digest;

/// A container's hold on an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The container.
    pub container: String,
    /// Its image.
    pub image: Digest,
    /// The image's layers, held though the image may be removed by force.
    pub layers: Vec<Digest>,
}

/// A pull's hold on layers; ends when dropped.
#[derive(Debug)]
pub(crate) struct PullLease(#[expect(dead_code, reason = "the hold is the locked file itself")] TempFile);

impl Store {
    /// Holds an image for a container until [`Store::release`]. Repeating it replaces the container's lease.
    ///
    /// # Errors
    /// [`StoreError::LayerMissing`] where the image was removed in the meantime.
    pub fn lease(&self, container: &str, image: &Image) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        for layer in &image.layers {
            if self.look_at(&layer.into()).is_none() {
                return Err(StoreError::LayerMissing {
                    image: image.id.clone(),
                    diff_id: layer.diff_id.clone(),
                });
            }
        }
        let layers = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let lease = Lease { container: container.to_owned(), image: image.id.clone(), layers };
        let path = self.lease_path(container);
        let bytes = serde_json::to_vec(&lease)
            .map_err(|source| StoreError::Damaged { path: path.clone(), source })?;
        // Not flushed to the disk: this is on the way of every `nacre run`.
        let temp = TempFile::new(&self.tmp_dir())?;
        temp.file().write_all(&bytes).map_err(|error| StoreError::io("write", &path, error))?;
        temp.rename(&path)
    }

    /// Ends a container's lease; without one it does nothing.
    ///
    /// # Errors
    /// Where the record cannot be removed.
    pub fn release(&self, container: &str) -> Result<(), StoreError> {
        files::remove(&self.lease_path(container))
    }

    /// All leases of containers.
    ///
    /// # Errors
    /// Where a record cannot be read.
    pub fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        let mut paths = files::list_dir(&self.root.join("leases"))?;
        // What a power cut emptied belonged to a container that it ended.
        paths.retain(|path| fs::metadata(path).is_ok_and(|data| data.len() > 0));
        paths.iter().filter_map(|path| files::read_json(path).transpose()).collect()
    }

    /// Holds layers, there or not yet, for a pull.
    pub(crate) fn lease_for_pull(&self, layers: &[Digest]) -> Result<PullLease, StoreError> {
        let _lock = self.lock()?;
        let hold = TempFile::new(&self.root.join("pulls"))?;
        let bytes = serde_json::to_vec(layers)
            .map_err(|source| StoreError::Damaged { path: hold.path().to_owned(), source })?;
        hold.file().write_all(&bytes).map_err(|error| StoreError::io("write", hold.path(), error))?;
        Ok(PullLease(hold))
    }

    /// Layers that pulls under way count on. To be called with the store locked.
    pub(super) fn layers_of_pulls(&self) -> Result<Vec<Digest>, StoreError> {
        let mut layers = Vec::new();
        for path in files::list_dir(&self.root.join("pulls"))? {
            if files::is_held(&path)? {
                layers.extend(files::read_json::<Vec<Digest>>(&path)?.unwrap_or_default());
            }
        }
        Ok(layers)
    }

    /// A container's id may be any text here: its hash is the file's name.
    fn lease_path(&self, container: &str) -> PathBuf {
        let hash = Digest::sha256(container.as_bytes());
        self.root.join("leases").join(format!("{}.json", hash.hex()))
    }
}
