//! Manifests and indexes: OCI image spec 1.1 and Docker schema 2.
//!
//! One document must mean one thing (CVE-2021-41190): what the header, the descriptor and the `mediaType` field
//! say must agree, and `layers` and `manifests` never stand together. Unknown fields are fine, fields that are a
//! known one in other letters ("Layers") are not: another client could read them.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::digest::Digest;

/// Largest manifest, index or image configuration in bytes.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Most layers of one image: overlayfs takes more, Docker never makes more than 127.
pub const MAX_LAYERS: usize = 127;

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// A document that is no manifest we can use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or fields of the wrong kind.
    #[error("manifest cannot be read")]
    Json(#[from] serde_json::Error),
    /// The old format.
    #[error("image has a schema 1 manifest, a format given up in 2017; push it again with a current tool")]
    Schema1,
    /// It could be read in two ways.
    #[error("manifest is ambiguous: {0}")]
    Ambiguous(String),
    /// Neither manifest nor index.
    #[error("document is neither an image manifest nor an index: {0}")]
    Unknown(String),
    /// An artifact other than a container image.
    #[error("not a container image, but an artifact of type {0:?}")]
    NotAnImage(String),
    /// A layer type that cannot be run here.
    #[error("layer type {0:?} is not supported")]
    LayerType(String),
    /// No layers, or too many.
    #[error("image has {0} layers, 1 to {MAX_LAYERS} are possible")]
    LayerCount(usize),
    /// A document larger than [`MAX_DOCUMENT_BYTES`].
    #[error("document has {0} bytes, at most {MAX_DOCUMENT_BYTES} are allowed")]
    TooLarge(u64),
    /// Nothing for this machine.
    #[error("image has no variant for {wanted}; it has: {available}")]
    NoPlatform {
        /// What was looked for.
        wanted: Box<Platform>,
        /// What there is.
        available: String,
    },
}

/// An operating system and architecture, as in image indexes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// Go's name of the operating system.
    pub os: String,
    /// Go's name of the architecture.
    pub architecture: String,
    /// Variant of the architecture.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// What a guest of this machine runs.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    fn fits(&self, wanted: &Self) -> bool {
        self.os == wanted.os && self.architecture == wanted.architecture
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &str| text.chars().filter(|c| !c.is_control()).take(32).collect::<String>();
        write!(f, "{}/{}", shown(&self.os), shown(&self.architecture))?;
        match &self.variant {
            Some(variant) => write!(f, "/{}", shown(variant)),
            None => Ok(()),
        }
    }
}

/// A typed pointer to content.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// In an index: where it runs.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Free text; used for names in OCI layouts only.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// An image manifest that passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The image configuration.
    pub config: Descriptor,
    /// Layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// A parsed document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Several images, to choose from.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<IgnoredAny>,
    #[serde(flatten)]
    rest: BTreeMap<String, IgnoredAny>,
}

const KNOWN_FIELDS: [&str; 6] = ["schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Index,
    Manifest,
}

fn kind_of(media_type: &str) -> Option<Kind> {
    match media_type {
        OCI_INDEX | DOCKER_LIST => Some(Kind::Index),
        OCI_MANIFEST | DOCKER_MANIFEST => Some(Kind::Manifest),
        _ => None,
    }
}

impl Document {
    /// Parses a document that came with the media type `declared` (a header or descriptor), if any.
    ///
    /// # Errors
    /// [`ManifestError`] for everything that is not one clear manifest or index.
    pub fn parse(bytes: &[u8], declared: Option<&str>) -> Result<Self, ManifestError> {
        let length = bytes.len() as u64;
        if length > MAX_DOCUMENT_BYTES {
            return Err(ManifestError::TooLarge(length));
        }
        // A header may carry parameters ("; charset=utf-8"); the type is what stands before them.
        let declared = declared.map(|text| text.split(';').next().unwrap_or("").trim());
        if declared.is_some_and(|text| text.contains("distribution.manifest.v1+")) {
            return Err(ManifestError::Schema1);
        }
        let raw: Raw = serde_json::from_slice(bytes)?;
        let kind = raw.kind(declared)?;
        match (kind, raw.config, raw.layers, raw.manifests) {
            (Kind::Index, None, None, Some(manifests)) => Ok(Self::Index(manifests)),
            (Kind::Manifest, Some(config), Some(layers), None) => {
                Ok(Self::Manifest(Manifest::checked(config, layers)?))
            }
            (kind, ..) => Err(ManifestError::Unknown(format!("fields do not fit {kind:?}").to_lowercase())),
        }
    }
}

impl Raw {
    fn kind(&self, declared: Option<&str>) -> Result<Kind, ManifestError> {
        if self.fs_layers.is_some() || self.schema_version == Some(1) {
            return Err(ManifestError::Schema1);
        }
        if self.layers.is_some() && self.manifests.is_some()
            || self.config.is_some() && self.manifests.is_some()
        {
            return Err(ManifestError::Ambiguous("it is a manifest and an index at once".into()));
        }
        let twin =
            self.rest.keys().find(|key| KNOWN_FIELDS.iter().any(|known| key.eq_ignore_ascii_case(known)));
        if let Some(twin) = twin {
            return Err(ManifestError::Ambiguous(format!("field {twin:?} is spelled in unusual letters")));
        }
        let shape = if self.manifests.is_some() { Kind::Index } else { Kind::Manifest };
        let inner = self.media_type.as_deref();
        if let (Some(inner), Some(declared)) = (inner, declared.filter(|text| kind_of(text).is_some()))
            && inner != declared
        {
            let said = format!("sent as {declared:?}, but calls itself {:?}", shorten(inner));
            return Err(ManifestError::Ambiguous(said));
        }
        for said in [inner, declared].into_iter().flatten() {
            match kind_of(said) {
                Some(kind) if kind != shape => {
                    return Err(ManifestError::Ambiguous(format!("type {said:?} does not fit its fields")));
                }
                None if Some(said) == inner => return Err(ManifestError::Unknown(shorten(said))),
                _ => {}
            }
        }
        Ok(shape)
    }
}

impl Manifest {
    fn checked(config: Descriptor, layers: Vec<Descriptor>) -> Result<Self, ManifestError> {
        if config.media_type != OCI_CONFIG && config.media_type != DOCKER_CONFIG {
            return Err(ManifestError::NotAnImage(shorten(&config.media_type)));
        }
        if config.size > MAX_DOCUMENT_BYTES {
            return Err(ManifestError::TooLarge(config.size));
        }
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(ManifestError::LayerCount(layers.len()));
        }
        if let Some(odd) = layers.iter().find(|layer| !LAYER_TYPES.contains(&layer.media_type.as_str())) {
            return Err(ManifestError::LayerType(shorten(&odd.media_type)));
        }
        Ok(Self { config, layers })
    }
}

/// The entry of an index that fits `wanted`: of several the one that asks least of the processor.
///
/// # Errors
/// [`ManifestError::NoPlatform`] with what there is.
pub fn select<'a>(entries: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor, ManifestError> {
    if let [only] = entries
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|platform| platform.fits(wanted));
    let rank = |entry: &&Descriptor| entry.platform.as_ref().and_then(|platform| platform.variant.clone());
    entries.iter().filter(fits).min_by_key(rank).ok_or_else(|| {
        let mut names: Vec<String> =
            entries.iter().filter_map(|entry| entry.platform.as_ref()).map(Platform::to_string).collect();
        names.sort();
        names.dedup();
        names.truncate(16);
        let available = if names.is_empty() { "none named".into() } else { names.join(", ") };
        ManifestError::NoPlatform { wanted: Box::new(wanted.clone()), available }
    })
}

fn shorten(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
