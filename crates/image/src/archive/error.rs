//! What can go wrong with an image in a directory or archive.

use std::io;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::digest::{Digest, DigestError};
use crate::ingest::LayerFailure;
use crate::manifest::ManifestError;
use crate::store::StoreError;

/// An import that failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The directory, archive or a file of it.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file that the format needs.
    #[error("{path} has no {name}: is it really {kind}?")]
    Missing {
        /// The directory or archive.
        path: PathBuf,
        /// The file.
        name: String,
        /// What was expected.
        kind: &'static str,
    },
    /// A tar file that breaks off or is none.
    #[error("{path} is not a valid tar archive: {problem} at byte {offset}")]
    Tar {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
        /// Where.
        offset: u64,
    },
    /// An entry name that leads out of the archive.
    #[error("{path} has an entry that leads out of it: {name:?}")]
    Traversal {
        /// The archive.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A document larger than documents are.
    #[error("{name} in {path} has {found} bytes, at most {limit} are allowed")]
    TooLarge {
        /// The directory or archive.
        path: PathBuf,
        /// The file.
        name: String,
        /// Its length.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// A document that is not what the format says.
    #[error("{name} in {path} cannot be read")]
    Json {
        /// The directory or archive.
        path: PathBuf,
        /// The file.
        name: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A manifest or index.
    #[error("cannot use the manifest in {path}")]
    Manifest {
        /// The directory or archive.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ManifestError,
    },
    /// A name that should be a digest.
    #[error("{path} names a blob by a bad digest")]
    Digest {
        /// The directory or archive.
        path: PathBuf,
        /// Why it is bad.
        #[source]
        source: DigestError,
    },
    /// Content that is not what its digest or size says.
    #[error("blob {digest} in {path} is damaged")]
    Damaged {
        /// The directory or archive.
        path: PathBuf,
        /// The blob.
        digest: Digest,
    },
    /// Several images, none chosen.
    #[error("{path} holds several images; append one of their names: {names}")]
    Several {
        /// The directory or archive.
        path: PathBuf,
        /// Their names.
        names: String,
    },
    /// The chosen image is not there.
    #[error("{path} holds no image called {wanted:?}; it has: {names}")]
    NoSuchImage {
        /// The directory or archive.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is.
        names: String,
    },
    /// Indexes in indexes without an end.
    #[error("{path} nests indexes too deeply")]
    Nested {
        /// The directory or archive.
        path: PathBuf,
    },
    /// The configuration.
    #[error("cannot use the image configuration in {path}")]
    Config {
        /// The directory or archive.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ConfigError,
    },
    /// Manifest and configuration disagree.
    #[error("manifest has {layers} layers, but the image configuration has {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// A layer.
    #[error("layer {digest} was not stored")]
    Layer {
        /// The layer.
        digest: Digest,
        /// Why not.
        #[source]
        source: LayerFailure,
    },
    /// The layers do not go together.
    #[error("layers cannot be put together")]
    Assemble(#[source] LayerFailure),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}
