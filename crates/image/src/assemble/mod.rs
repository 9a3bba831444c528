//! The last step of a pull or import: layers that are all in the store become an image.
//!
//! Each layer is a file system of its own, and an overlay shows a directory as its topmost layer has it. An
//! engine that unpacks layers one over the other leaves a directory alone when a layer only passes through it:
//! `tmp/x` without an entry for `tmp/` keeps the 1777 of a layer below. So where the overlay would show
//! something else, one more layer goes on top that holds nothing but those directories as they should be
//! (`directories`). Most images need none.

mod directories;

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::ingest::{LayerFailure, LayerSpec, ingest};
use crate::layer::LayerLimits;
use crate::store::{Image, ImageRecord, LayerRecord, NameRecord, PullLease, Store, StoreError};

/// An image whose layers are stored under the diff ids of its configuration.
pub(crate) struct Complete<'a> {
    pub(crate) config: ImageConfig,
    pub(crate) config_bytes: &'a [u8],
    pub(crate) manifest_digest: Option<&'a Digest>,
    /// Documents to keep beside the configuration.
    pub(crate) documents: Vec<(&'a Digest, &'a [u8])>,
    /// Names and what the registry has under them.
    pub(crate) names: Vec<(crate::reference::Reference, Option<Digest>)>,
}

/// Records the image.
///
/// # Errors
/// Where a layer is missing or the store fails.
pub(crate) fn assemble(
    store: &Store,
    limits: &LayerLimits,
    image: Complete<'_>,
) -> Result<Image, LayerFailure> {
    let id = Digest::sha256(image.config_bytes);
    let mut layers = Vec::with_capacity(image.config.rootfs.diff_ids.len() + 1);
    for diff_id in &image.config.rootfs.diff_ids {
        let missing = || StoreError::LayerMissing { image: id.clone(), diff_id: diff_id.clone() };
        layers.push(LayerRecord::from(&store.layer(diff_id)?.ok_or_else(missing)?));
    }
    let correction = correction(store, limits, &layers)?;
    layers.extend(correction.iter().map(|(layer, _lease)| layer.clone()));
    let (config, manifest_digest) = (image.config, image.manifest_digest.cloned());
    let record = ImageRecord { id: id.clone(), manifest_digest, config, layers };
    let mut documents = image.documents;
    documents.push((&id, image.config_bytes));
    let named = |(name, target)| NameRecord { name, target, image: id.clone() };
    let names: Vec<NameRecord> = image.names.into_iter().map(named).collect();
    store.commit_image(&record, &documents, &names)?;
    let missing = || StoreError::NotFound(id.to_string());
    Ok(store.image(&id)?.ok_or_else(missing)?)
}

/// The layer that corrects directories, with a hold on it until it is recorded; none where none is needed.
fn correction(
    store: &Store,
    limits: &LayerLimits,
    layers: &[LayerRecord],
) -> Result<Option<(LayerRecord, PullLease)>, LayerFailure> {
    let Some(tar) = directories::corrections(store, layers)? else { return Ok(None) };
    let diff_id = Digest::sha256(&tar);
    let lease = store.lease_for_pull(std::slice::from_ref(&diff_id))?;
    let layer = match store.layer(&diff_id)? {
        Some(layer) => layer,
        None => {
            let spec = LayerSpec { digest: None, size: tar.len() as u64, diff_id };
            ingest(store, &spec, tar.as_slice(), limits)?
        }
    };
    Ok(Some((LayerRecord::from(&layer), lease)))
}
