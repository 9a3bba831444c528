//! Images outside registries: OCI layouts in a directory or tar file, and what `docker save` writes.
//!
//! An archive is not unpacked. Its tar headers are read once, then blobs are read where they lie in the file.
//! Names in it choose among its own entries and never reach the host's file system.

mod container;
mod docker;
mod error;
mod names;
mod oci;
mod tarfile;

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use crate::assemble::{Complete, assemble};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::ingest::{LayerFailure, LayerSpec, ingest};
use crate::progress::{Event, Progress};
use crate::pull::PullOptions;
use crate::reference::Reference;
use crate::source::LocalKind;
use crate::store::{Image, Store};

use container::Container;
pub use error::ImportError;

/// Bytes between two reports of progress.
const REPORT_BYTES: u64 = 1 << 20;

/// Stores the image of an OCI layout or archive, or finds that all of it is here.
///
/// # Errors
/// [`ImportError`]; the chain of causes says what to do.
pub fn import(
    store: &Store,
    kind: LocalKind,
    path: &Path,
    select: Option<&str>,
    options: &PullOptions,
    progress: &Progress<'_>,
) -> Result<Image, ImportError> {
    store.sweep()?;
    let container = Container::open(store, kind, path, options.layer.stream_bytes)?;
    let found = match kind {
        LocalKind::OciDir | LocalKind::OciArchive => oci::find(&container, select, &options.platform)?,
        LocalKind::DockerArchive => docker::find(&container, select)?,
    };
    let config = ImageConfig::parse(&found.config, &options.platform)
        .map_err(|source| ImportError::Config { path: path.to_owned(), source })?;
    let (layers, diff_ids) = (found.layers.len(), config.rootfs.diff_ids.len());
    if layers != diff_ids {
        return Err(ImportError::LayerCount { layers, diff_ids });
    }
    let _lease = store.lease_for_pull(&config.rootfs.diff_ids)?;
    let import = Import { store, container: &container, options, progress };
    import.layers(&found, &config.rootfs.diff_ids)?;
    import.commit(found, config)
}

/// An image in a container, its documents verified.
struct Found {
    config: Vec<u8>,
    /// The manifest, where the format has one.
    manifest: Option<(Digest, Vec<u8>)>,
    layers: Vec<FoundLayer>,
    names: Vec<Reference>,
}

/// A layer that is still in its container.
struct FoundLayer {
    /// File name in the container.
    name: String,
    /// Digest of the file, where the format has one.
    digest: Option<Digest>,
    size: u64,
}

struct Import<'a> {
    store: &'a Store,
    container: &'a Container,
    options: &'a PullOptions,
    progress: &'a Progress<'a>,
}

impl Import<'_> {
    fn layers(&self, found: &Found, diff_ids: &[Digest]) -> Result<(), ImportError> {
        let mut seen = BTreeSet::new();
        let mut missing = VecDeque::new();
        let mut missing_bytes = 0u64;
        for (layer, diff_id) in found.layers.iter().zip(diff_ids) {
            if !seen.insert(diff_id) {
                continue;
            }
            if self.store.layer(diff_id)?.is_some() {
                (self.progress)(Event::LayerExists { layer: layer.shown(diff_id) });
                continue;
            }
            missing_bytes = missing_bytes.saturating_add(layer.size);
            missing.push_back((layer, diff_id));
        }
        let digest = found.manifest.as_ref().map(|(digest, _)| digest);
        (self.progress)(Event::Resolved { digest, layers: diff_ids.len(), missing_bytes });
        self.run(missing)
    }

    /// Works on several layers at once; the first failure ends the rest before their next layer.
    fn run(&self, missing: VecDeque<(&FoundLayer, &Digest)>) -> Result<(), ImportError> {
        let workers = self.options.parallel_layers.clamp(1, missing.len().max(1));
        let queue = Mutex::new(missing);
        let next = || queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop_front();
        let work = || -> Result<(), ImportError> {
            while let Some((layer, diff_id)) = next() {
                if let Err(error) = self.layer(layer, diff_id) {
                    while next().is_some() {}
                    return Err(error);
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let results = running.into_iter().map(|worker| {
                // A panic is a bug of ours; it goes on here instead of being lost.
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            results.fold(Ok(()), Result::and)
        })
    }

    fn layer(&self, layer: &FoundLayer, diff_id: &Digest) -> Result<(), ImportError> {
        let shown = layer.shown(diff_id);
        (self.progress)(Event::LayerStarted { layer: shown, size_bytes: layer.size });
        let file = self.container.open_file(&layer.name)?;
        let reader =
            Reporting { inner: file.reader(), done: 0, told: 0, layer: shown, progress: self.progress };
        let spec = LayerSpec { digest: layer.digest.clone(), size: layer.size, diff_id: diff_id.clone() };
        let blob = ingest(self.store, &spec, reader, &self.options.layer)
            .map_err(|source| ImportError::Layer { digest: shown.clone(), source })?;
        (self.progress)(Event::LayerDone { layer: shown, stored_bytes: blob.length_bytes });
        Ok(())
    }

    fn commit(&self, found: Found, config: ImageConfig) -> Result<Image, ImportError> {
        let manifest = found.manifest.as_ref().map(|(digest, bytes)| (digest, bytes.as_slice()));
        let complete = Complete {
            config,
            config_bytes: &found.config,
            manifest_digest: manifest.map(|(digest, _)| digest),
            documents: manifest.into_iter().collect(),
            // No target: a later pull of the name must ask the registry.
            names: found.names.into_iter().map(|name| (name, None)).collect(),
        };
        assemble(self.store, &self.options.layer, complete).map_err(|error| match error {
            LayerFailure::Store(error) => error.into(),
            error => ImportError::Assemble(error),
        })
    }
}

impl FoundLayer {
    fn shown<'a>(&'a self, diff_id: &'a Digest) -> &'a Digest {
        self.digest.as_ref().unwrap_or(diff_id)
    }
}

/// Tells the progress of a reader.
struct Reporting<'a, R> {
    inner: R,
    done: u64,
    told: u64,
    layer: &'a Digest,
    progress: &'a Progress<'a>,
}

impl<R: Read> Read for Reporting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done += count as u64;
        if self.done - self.told >= REPORT_BYTES || (count == 0 && self.done > self.told) {
            self.told = self.done;
            (self.progress)(Event::LayerBytes { layer: self.layer, done_bytes: self.done });
        }
        Ok(count)
    }
}

/// Names for a message: bounded, and without what a terminal would obey.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let clean = |name: &str| name.chars().filter(|c| !c.is_control()).take(80).collect::<String>();
    let names: Vec<String> = names.take(16).map(clean).collect();
    if names.is_empty() { "none with a name".into() } else { names.join(", ") }
}
