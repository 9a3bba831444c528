//! `nacre inspect` on images: Docker's JSON.

use serde_json::{Value, json};

use super::{Store, StoreError};
use crate::reference::Reference;

impl Store {
    /// Describes an image as `docker image inspect` does.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or a damaged record.
    pub fn inspect(&self, text: &str) -> Result<Value, StoreError> {
        let not_found = || StoreError::NotFound(text.to_owned());
        let id = self.resolve(text)?.ok_or_else(not_found)?;
        let record = self.image_record(&id)?.ok_or_else(not_found)?;
        let names = self.names(&id)?;
        let (digests, tags): (Vec<&Reference>, Vec<&Reference>) =
            names.iter().partition(|name| name.digest().is_some());
        let familiar =
            |names: Vec<&Reference>| names.into_iter().map(Reference::familiar).collect::<Vec<_>>();
        let config = &record.config;
        let layers: Vec<Value> = record
            .layers
            .iter()
            .map(|layer| {
                json!({"DiffId": layer.diff_id, "Path": self.layer_path(&layer.diff_id), "Size": layer.length_bytes})
            })
            .collect();
        Ok(json!({
            "Id": record.id,
            "RepoTags": familiar(tags),
            "RepoDigests": familiar(digests),
            "Created": config.created.as_deref().unwrap_or_default(),
            "Author": config.author.as_deref().unwrap_or_default(),
            "Config": config.config,
            "Architecture": config.architecture,
            "Variant": config.variant.as_deref().unwrap_or_default(),
            "Os": config.os,
            "Size": record.size_bytes(),
            "RootFS": {"Type": config.rootfs.kind, "Layers": config.rootfs.diff_ids},
            "ManifestDigest": record.manifest_digest,
            "ErofsLayers": layers,
        }))
    }
}
