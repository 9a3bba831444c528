//! What `docker save` writes: `manifest.json`, configurations, and layers as tar files.
//!
//! Layers have no digest of their own here; the configuration's diff ids are what they are checked against.

use serde::Deserialize;

use super::{Container, Found, FoundLayer, ImportError, listed, names, oci};
use crate::digest::Digest;
use crate::manifest::MAX_DOCUMENT_BYTES;
use crate::reference::Reference;

const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Chooses an image of an archive and reads its configuration.
pub(super) fn find(container: &Container, select: Option<&str>) -> Result<Found, ImportError> {
    let bytes = container.document(MANIFEST, MAX_DOCUMENT_BYTES)?;
    let entries: Vec<Entry> = serde_json::from_slice(&bytes).map_err(|source| ImportError::Json {
        path: container.path.clone(),
        name: MANIFEST.into(),
        source,
    })?;
    let entry = choose(container, &entries, select)?;
    let config = container.document(&entry.config, MAX_DOCUMENT_BYTES)?;
    check_config_name(container, &entry.config, &config)?;
    let layer = |name: &String| {
        let piece = container.open_file(name)?;
        let digest = oci::digest_in_name(name)
            .transpose()
            .map_err(|source| ImportError::Digest { path: container.path.clone(), source })?;
        Ok(FoundLayer { name: name.clone(), digest, size: piece.size })
    };
    let layers = entry.layers.iter().map(layer).collect::<Result<_, ImportError>>()?;
    let names = names::of_image(&container.path, entry.tags());
    Ok(Found { config, manifest: None, layers, names })
}

impl Entry {
    fn tags(&self) -> impl Iterator<Item = &str> {
        self.repo_tags.iter().flatten().map(String::as_str)
    }

    /// `app:1` also finds `docker.io/library/app:1`.
    fn is_called(&self, wanted: &str) -> bool {
        let canonical = wanted.parse::<Reference>().ok();
        self.tags()
            .any(|tag| tag == wanted || canonical.is_some() && tag.parse::<Reference>().ok() == canonical)
    }
}

fn choose<'a>(
    container: &Container,
    entries: &'a [Entry],
    select: Option<&str>,
) -> Result<&'a Entry, ImportError> {
    let names = || listed(entries.iter().flat_map(Entry::tags));
    let path = || container.path.clone();
    match (select, entries) {
        (None, [only]) => Ok(only),
        (None, [_, _, ..]) => Err(ImportError::Several { path: path(), names: names() }),
        (select, entries) => {
            let wanted = select.unwrap_or("*");
            entries.iter().find(|entry| entry.is_called(wanted)).ok_or_else(|| ImportError::NoSuchImage {
                path: path(),
                wanted: wanted.to_owned(),
                names: names(),
            })
        }
    }
}

/// The configuration's file is named by its digest, `HEX.json` or `blobs/sha256/HEX`: damage shows here.
fn check_config_name(container: &Container, name: &str, config: &[u8]) -> Result<(), ImportError> {
    let from_stem =
        || name.strip_suffix(".json").and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
    let named = match oci::digest_in_name(name) {
        Some(Ok(digest)) => Some(digest),
        Some(Err(source)) => return Err(ImportError::Digest { path: container.path.clone(), source }),
        None => from_stem(),
    };
    match named {
        Some(digest) if !digest.matches(config) => {
            Err(ImportError::Damaged { path: container.path.clone(), digest })
        }
        _ => Ok(()),
    }
}
