//! OCI image layouts (OCI image spec, image-layout.md).

use super::{Container, Found, FoundLayer, ImportError, listed, names};
use crate::digest::{Digest, DigestError};
use crate::manifest::{self, Descriptor, Document, MAX_DOCUMENT_BYTES, Manifest, ManifestError, Platform};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// `index.json`, an index that it names, a manifest: no tool nests deeper.
const MAX_DEPTH: usize = 4;

/// Chooses an image of a layout and reads its documents.
pub(super) fn find(
    container: &Container,
    select: Option<&str>,
    platform: &Platform,
) -> Result<Found, ImportError> {
    // Its absence tells best that this is no layout.
    container.document("oci-layout", MAX_DOCUMENT_BYTES)?;
    let bytes = container.document("index.json", MAX_DOCUMENT_BYTES)?;
    let bad = |source| ImportError::Manifest { path: container.path.clone(), source };
    let Document::Index(entries) = Document::parse(&bytes, None).map_err(bad)? else {
        return Err(bad(ManifestError::Unknown("index.json is not an index".into())));
    };
    let entry = choose(container, &entries, select, platform)?;
    let names = names::of_image(&container.path, annotated(entry));
    let (digest, bytes, manifest) = resolve(container, entry.clone(), platform)?;
    let config = blob(container, &manifest.config)?;
    let layers = manifest
        .layers
        .into_iter()
        .map(|layer| FoundLayer {
            name: blob_name(&layer.digest),
            size: layer.size,
            digest: Some(layer.digest),
        })
        .collect();
    Ok(Found { config, manifest: Some((digest, bytes)), layers, names })
}

fn choose<'a>(
    container: &Container,
    entries: &'a [Descriptor],
    select: Option<&str>,
    platform: &Platform,
) -> Result<&'a Descriptor, ImportError> {
    let all_names = || listed(entries.iter().flat_map(annotated));
    let path = || container.path.clone();
    if let Some(wanted) = select {
        let mut found = entries.iter().filter(|entry| annotated(entry).any(|name| name == wanted));
        let first = found.next().ok_or_else(|| ImportError::NoSuchImage {
            path: path(),
            wanted: wanted.to_owned(),
            names: all_names(),
        })?;
        return if found.all(|other| other.digest == first.digest) {
            Ok(first)
        } else {
            Err(ImportError::Several { path: path(), names: all_names() })
        };
    }
    match entries {
        [] => Err(ImportError::NoSuchImage { path: path(), wanted: "*".into(), names: all_names() }),
        [only] => Ok(only),
        [first, rest @ ..] if rest.iter().all(|other| other.digest == first.digest) => Ok(first),
        // One image for several machines, unfolded into the outer index.
        entries
            if entries.iter().all(|entry| entry.platform.is_some() && annotated(entry).next().is_none()) =>
        {
            manifest::select(entries, platform)
                .map_err(|source| ImportError::Manifest { path: path(), source })
        }
        _ => Err(ImportError::Several { path: path(), names: all_names() }),
    }
}

/// Follows indexes to the manifest for this machine.
fn resolve(
    container: &Container,
    mut entry: Descriptor,
    platform: &Platform,
) -> Result<(Digest, Vec<u8>, Manifest), ImportError> {
    let bad = |source| ImportError::Manifest { path: container.path.clone(), source };
    for _ in 0..MAX_DEPTH {
        let bytes = blob(container, &entry)?;
        match Document::parse(&bytes, Some(&entry.media_type)).map_err(bad)? {
            Document::Manifest(manifest) => return Ok((entry.digest, bytes, manifest)),
            Document::Index(entries) => entry = manifest::select(&entries, platform).map_err(bad)?.clone(),
        }
    }
    Err(ImportError::Nested { path: container.path.clone() })
}

/// A small blob, checked against its descriptor.
fn blob(container: &Container, descriptor: &Descriptor) -> Result<Vec<u8>, ImportError> {
    let bytes = container.document(&blob_name(&descriptor.digest), MAX_DOCUMENT_BYTES)?;
    if bytes.len() as u64 != descriptor.size || !descriptor.digest.matches(&bytes) {
        return Err(ImportError::Damaged { path: container.path.clone(), digest: descriptor.digest.clone() });
    }
    Ok(bytes)
}

/// Checked digests make safe names.
fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

fn annotated(entry: &Descriptor) -> impl Iterator<Item = &str> {
    let get = move |key: &str| entry.annotations.as_ref().and_then(|annotations| annotations.get(key));
    [get(REF_NAME), get(CONTAINERD_NAME)].into_iter().flatten().map(String::as_str)
}

/// Also used for docker-archive, whose newer form names its files like this.
pub(super) fn digest_in_name(name: &str) -> Option<Result<Digest, DigestError>> {
    let (algorithm, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
    Some(format!("{algorithm}:{hex}").parse())
}
