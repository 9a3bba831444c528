//! Pull: from a name to an image in the store.
//!
//! 1. ask what the name stands for; if that is here already, stop (a tag costs one HEAD, a digest nothing)
//! 2. manifest, through an index to the one for this machine; configuration
//! 3. the layers that are missing, a few at a time, each through `ingest`
//! 4. record image and names in one step
//!
//! A pull that fails or dies leaves finished, verified layers (the next pull counts them as here) and nothing
//! else. The network runs on the calling thread, the conversion on threads of its own.

use std::collections::BTreeSet;
use std::io::{self, Read};

use bytes::{Buf, Bytes};
use futures_util::stream::{self, StreamExt};
use tokio::sync::mpsc;

use crate::assemble::{Complete, assemble};
use crate::config::{ConfigError, ImageConfig};
use crate::digest::Digest;
use crate::ingest::{LayerFailure, LayerSpec, ingest};
use crate::layer::LayerLimits;
use crate::manifest::{self, Descriptor, Document, Manifest, ManifestError, Platform};
use crate::progress::{Event, Progress};
use crate::reference::{Reference, Selector};
use crate::registry::{BlobRequest, Client, RegistryError, RegistryOptions};
use crate::store::{Image, LayerBlob, Store, StoreError};

/// Pieces of a layer that may wait between the network and the decoder.
const NETWORK_CHUNKS_WAITING: usize = 32;

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Which of a multi-platform image's variants.
    pub platform: Platform,
    /// Layers that are fetched at the same time.
    pub parallel_layers: usize,
    /// Bytes of all layers together, as they come.
    pub max_image_bytes: u64,
    /// Bounds on each layer.
    pub layer: LayerLimits,
    /// How to reach the registry.
    pub registry: RegistryOptions,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            parallel_layers: 3,
            max_image_bytes: 128 << 30,
            layer: LayerLimits::default(),
            registry: RegistryOptions::default(),
        }
    }
}

/// A pull that failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry, or the way to it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The manifest.
    #[error("cannot use the manifest of {what}")]
    Manifest {
        /// The image.
        what: String,
        /// Why not.
        #[source]
        source: ManifestError,
    },
    /// The configuration.
    #[error("cannot use the configuration of {what}")]
    Config {
        /// The image.
        what: String,
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
    /// An index in an index.
    #[error("{0} is an index of indexes, which no registry should have")]
    NestedIndex(String),
    /// An index entry that says another size than its manifest has.
    #[error("manifest {digest} has {found} bytes, but its index says {expected}")]
    ManifestSize {
        /// The manifest.
        digest: Digest,
        /// From the index.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Too many bytes in all.
    #[error("image has {0} bytes of layers, more than is allowed")]
    TooLarge(u64),
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
    /// No threads or no event queue.
    #[error("cannot start the network")]
    Runtime(#[source] io::Error),
}

/// Pulls an image into the store; with all of it there, only asks the registry whether that is still so.
///
/// # Errors
/// [`PullError`]; the chain of causes says what to do.
pub fn pull(
    store: &Store,
    reference: &Reference,
    options: &PullOptions,
    progress: &Progress<'_>,
) -> Result<Image, PullError> {
    store.sweep()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PullError::Runtime)?;
    let pull =
        Pull { store, reference, options, progress, client: Client::new(reference, &options.registry)? };
    // Dropping the runtime waits for the threads, so no temporary file outlives this call.
    runtime.block_on(pull.run())
}

struct Pull<'a> {
    store: &'a Store,
    reference: &'a Reference,
    options: &'a PullOptions,
    progress: &'a Progress<'a>,
    client: Client,
}

/// Documents of an image, verified.
struct Resolved {
    /// What the name stands for, and its bytes: an index or the manifest.
    target: (Digest, Vec<u8>),
    manifest_digest: Digest,
    manifest_bytes: Vec<u8>,
    manifest: Manifest,
}

impl Pull<'_> {
    async fn run(&self) -> Result<Image, PullError> {
        (self.progress)(Event::Resolving { reference: self.reference });
        if let Some(image) = self.already_here().await? {
            return Ok(image);
        }
        let resolved = self.resolve().await?;
        let (config, config_bytes) = self.config(&resolved.manifest.config).await?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != resolved.manifest.layers.len() {
            let layers = resolved.manifest.layers.len();
            return Err(PullError::LayerCount { layers, diff_ids: diff_ids.len() });
        }
        // From here on no prune takes layers from under us.
        let _lease = self.store.lease_for_pull(diff_ids)?;
        self.layers(&resolved, diff_ids).await?;
        self.commit(&resolved, config, &config_bytes)
    }

    async fn already_here(&self) -> Result<Option<Image>, PullError> {
        let Some(known) = self.store.name_record(self.reference)? else { return Ok(None) };
        let target = match self.reference.selector() {
            Selector::Digest(digest) => Some(digest.clone()),
            Selector::Tag(_) => match self.client.head(self.reference).await {
                Ok(target) => target,
                // Some registries know no HEAD; the GET that follows decides.
                Err(RegistryError::Status { status: 400..500, .. }) => None,
                Err(error) => return Err(error.into()),
            },
        };
        let Some(target) = target.filter(|target| known.target.as_ref() == Some(target)) else {
            return Ok(None);
        };
        match self.store.image(&known.image) {
            Ok(Some(image)) => {
                (self.progress)(Event::UpToDate { digest: &target });
                Ok(Some(image))
            }
            // Damage is repaired by pulling.
            Ok(None) | Err(StoreError::LayerMissing { .. } | StoreError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn resolve(&self) -> Result<Resolved, PullError> {
        let bad = |source| PullError::Manifest { what: self.reference.to_string(), source };
        let outer = self.client.manifest(&self.reference.selector_text()).await?;
        let document = Document::parse(&outer.bytes, outer.media_type.as_deref()).map_err(bad)?;
        let entries = match document {
            Document::Manifest(manifest) => {
                return Ok(Resolved {
                    manifest_digest: outer.digest.clone(),
                    manifest_bytes: outer.bytes.clone(),
                    target: (outer.digest, outer.bytes),
                    manifest,
                });
            }
            Document::Index(entries) => entries,
        };
        let entry = manifest::select(&entries, &self.options.platform).map_err(bad)?;
        let (bytes, header) = self.selected(entry).await?;
        let found = bytes.len() as u64;
        if found != entry.size {
            return Err(PullError::ManifestSize {
                digest: entry.digest.clone(),
                expected: entry.size,
                found,
            });
        }
        // Header and index entry must both agree with the document, and so with each other.
        Document::parse(&bytes, header.as_deref()).map_err(bad)?;
        match Document::parse(&bytes, Some(&entry.media_type)).map_err(bad)? {
            Document::Index(_) => Err(PullError::NestedIndex(self.reference.to_string())),
            Document::Manifest(manifest) => Ok(Resolved {
                target: (outer.digest, outer.bytes),
                manifest_digest: entry.digest.clone(),
                manifest_bytes: bytes,
                manifest,
            }),
        }
    }

    /// The manifest that an index entry names, and its Content-Type if it came from the registry.
    async fn selected(&self, entry: &Descriptor) -> Result<(Vec<u8>, Option<String>), PullError> {
        if let Some(bytes) = self.store.blob(&entry.digest)? {
            return Ok((bytes, None));
        }
        let raw = self.client.manifest(&entry.digest.to_string()).await?;
        Ok((raw.bytes, raw.media_type))
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<(ImageConfig, Vec<u8>), PullError> {
        let bytes = match self.store.blob(&descriptor.digest)? {
            Some(bytes) => bytes,
            None => self.client.small_blob(descriptor).await?,
        };
        let config = ImageConfig::parse(&bytes, &self.options.platform)
            .map_err(|source| PullError::Config { what: self.reference.to_string(), source })?;
        Ok((config, bytes))
    }

    async fn layers(&self, resolved: &Resolved, diff_ids: &[Digest]) -> Result<(), PullError> {
        let mut seen = BTreeSet::new();
        let mut missing = Vec::new();
        let mut bytes = 0u64;
        for (descriptor, diff_id) in resolved.manifest.layers.iter().zip(diff_ids) {
            if !seen.insert(diff_id) {
                continue;
            }
            if self.store.layer(diff_id)?.is_some() {
                (self.progress)(Event::LayerExists { layer: &descriptor.digest });
                continue;
            }
            bytes = bytes.saturating_add(descriptor.size);
            missing.push((descriptor, diff_id));
        }
        if bytes > self.options.max_image_bytes {
            return Err(PullError::TooLarge(bytes));
        }
        let layers = diff_ids.len();
        (self.progress)(Event::Resolved { digest: Some(&resolved.target.0), layers, missing_bytes: bytes });
        let fetches = missing.into_iter().map(|(descriptor, diff_id)| self.layer(descriptor, diff_id));
        let mut running = stream::iter(fetches).buffer_unordered(self.options.parallel_layers.max(1));
        while let Some(done) = running.next().await {
            done?;
        }
        Ok(())
    }

    async fn layer(&self, descriptor: &Descriptor, diff_id: &Digest) -> Result<LayerBlob, PullError> {
        let layer = &descriptor.digest;
        (self.progress)(Event::LayerStarted { layer, size_bytes: descriptor.size });
        let spec = LayerSpec { digest: Some(layer.clone()), size: descriptor.size, diff_id: diff_id.clone() };
        let (sink, chunks) = mpsc::channel(NETWORK_CHUNKS_WAITING);
        let source = NetworkReader { chunks, current: Bytes::new(), missing: descriptor.size };
        let (store, limits) = (self.store.clone(), self.options.layer);
        let stored = tokio::task::spawn_blocking(move || ingest(&store, &spec, source, &limits));
        let request = BlobRequest {
            digest: layer,
            size: descriptor.size,
            on_bytes: &|done_bytes| (self.progress)(Event::LayerBytes { layer, done_bytes }),
            on_retry: &|error| (self.progress)(Event::LayerRetry { layer, reason: &error.to_string() }),
        };
        let fetched = self.client.blob(&request, sink).await;
        let stored = stored.await.map_err(|error| PullError::Runtime(io::Error::other(error)))?;
        match (fetched, stored) {
            (Ok(()), Ok(blob)) => {
                (self.progress)(Event::LayerDone { layer, stored_bytes: blob.length_bytes });
                Ok(blob)
            }
            // The download stopped because nobody listened any more: the listener knows why.
            (Ok(()) | Err(RegistryError::Stopped), Err(source)) => {
                Err(PullError::Layer { digest: layer.clone(), source })
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    fn commit(
        &self,
        resolved: &Resolved,
        config: ImageConfig,
        config_bytes: &[u8],
    ) -> Result<Image, PullError> {
        let (target, target_bytes) = &resolved.target;
        let mut names = vec![(self.reference.clone(), Some(target.clone()))];
        if self.reference.tag().is_some() {
            names.push((self.reference.with_digest(target.clone()), Some(target.clone())));
        }
        let complete = Complete {
            config,
            config_bytes,
            manifest_digest: Some(&resolved.manifest_digest),
            documents: vec![
                (&resolved.manifest_digest, resolved.manifest_bytes.as_slice()),
                (target, target_bytes.as_slice()),
            ],
            names,
        };
        assemble(self.store, &self.options.layer, complete).map_err(|error| match error {
            LayerFailure::Store(error) => error.into(),
            error => PullError::Assemble(error),
        })
    }
}

/// The network's chunks as a blocking reader. A channel that closes before all bytes came is an error.
struct NetworkReader {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    missing: u64,
}

impl Read for NetworkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None if self.missing == 0 => return Ok(0),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        self.missing = self.missing.saturating_sub(count as u64);
        Ok(count)
    }
}
