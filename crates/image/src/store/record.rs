//! The records of the store and what callers get of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files;
use super::{Store, StoreError};
use crate::config::ImageConfig;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::reference::Reference;

/// An image, ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the image configuration: what Docker calls the image id.
    pub id: Digest,
    /// Digest of its manifest; none for an image that came without one (docker-archive).
    pub manifest_digest: Option<Digest>,
    /// How its containers start.
    pub config: ImageConfig,
    /// Layers to stack, lowest first. Those below a layer that hides all of them are left out: overlayfs does
    /// not look at the mark on a root directory. A last one that corrects directories may be added (`assemble`).
    pub layers: Vec<LayerBlob>,
}

/// A stored layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the layer's uncompressed tar stream.
    pub diff_id: Digest,
    /// The EROFS blob.
    pub path: PathBuf,
    /// Its length; a multiple of 4096.
    pub length_bytes: u64,
    /// It hides everything below it.
    pub root_opaque: bool,
}

/// One line of `nacre images`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// The image id.
    pub id: Digest,
    /// Names, tags before digests; an image without a tag is dangling.
    pub names: Vec<Reference>,
    /// Time of creation as the image says it.
    pub created: Option<String>,
    /// Bytes of its layers, shared ones counted in full.
    pub size_bytes: u64,
}

/// `images/HEX.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: Digest,
    pub(crate) manifest_digest: Option<Digest>,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<LayerRecord>,
}

/// A layer in an [`ImageRecord`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: Digest,
    pub(crate) length_bytes: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) root_opaque: bool,
}

impl From<&LayerBlob> for LayerRecord {
    fn from(layer: &LayerBlob) -> Self {
        Self {
            diff_id: layer.diff_id.clone(),
            length_bytes: layer.length_bytes,
            root_opaque: layer.root_opaque,
        }
    }
}

/// `names/HASH.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    pub(crate) name: Reference,
    /// What the registry had under the name: the index or manifest.
    pub(crate) target: Option<Digest>,
    pub(crate) image: Digest,
}

/// `layers/ALG/HEX.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LayerMeta {
    /// [`LayerMeta::FORMAT`] of its writer.
    pub(crate) format: u32,
    pub(crate) diff_id: Digest,
    pub(crate) length_bytes: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) root_opaque: bool,
    /// Directories that the layer uses but does not describe; each byte of a path is one character.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) implied_dirs: Vec<String>,
    /// There are more of them than are listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) more_implied_dirs: bool,
    /// SHA-256 of the EROFS blob, for [`Store::verify`].
    pub(crate) blob_digest: Digest,
}

impl LayerMeta {
    /// Raised when the EROFS writer's output changes in a way that old blobs should not be used any more.
    pub(crate) const FORMAT: u32 = 1;
}

impl ImageRecord {
    /// Bytes of all layers.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.length_bytes).fold(0, u64::saturating_add)
    }
}

impl Store {
    /// All images, in the order of their ids.
    ///
    /// # Errors
    /// Where a record cannot be read.
    pub fn list(&self) -> Result<Vec<ImageSummary>, StoreError> {
        let names = self.name_records()?;
        let mut summaries = Vec::new();
        for id in self.image_ids()? {
            let Some(record) = self.image_record(&id)? else { continue };
            summaries.push(ImageSummary {
                names: names_of(&names, &id),
                size_bytes: record.size_bytes(),
                created: record.config.created,
                id,
            });
        }
        Ok(summaries)
    }

    /// The names of an image, tags before digests.
    ///
    /// # Errors
    /// Where a record cannot be read.
    pub fn names(&self, id: &Digest) -> Result<Vec<Reference>, StoreError> {
        Ok(names_of(&self.name_records()?, id))
    }

    /// Reads every layer of an image again and compares it with what was stored.
    ///
    /// # Errors
    /// [`StoreError::LayerMissing`] names the first layer that differs.
    pub fn verify(&self, image: &Image) -> Result<(), StoreError> {
        for layer in &image.layers {
            let meta = files::read_json::<LayerMeta>(&self.layer_file(&layer.diff_id, "json"))?;
            let file = File::open(&layer.path).map_err(|error| StoreError::io("open", &layer.path, error))?;
            let found = digest_file(&file, &layer.path)?;
            if meta.is_none_or(|meta| meta.blob_digest != found) {
                return Err(StoreError::LayerMissing {
                    image: image.id.clone(),
                    diff_id: layer.diff_id.clone(),
                });
            }
        }
        Ok(())
    }
}

pub(super) fn names_of(names: &[NameRecord], id: &Digest) -> Vec<Reference> {
    let mut names: Vec<Reference> =
        names.iter().filter(|record| record.image == *id).map(|record| record.name.clone()).collect();
    names.sort_by_key(|name| (name.digest().is_some(), name.to_string()));
    names
}

/// A path as text without loss: JSON has no bytes.
pub(crate) fn path_text(path: &[u8]) -> String {
    path.iter().copied().map(char::from).collect()
}

/// The path of [`path_text`].
pub(crate) fn path_bytes(text: &str) -> Vec<u8> {
    text.chars().filter_map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

/// SHA-256 of a whole file, whatever its offset.
pub(super) fn digest_file(file: &File, path: &Path) -> Result<Digest, StoreError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read", path, error)),
        }
    }
}
