//! What a pull or import tells while it works. The command line draws it; nothing here knows of terminals.

use crate::digest::Digest;
use crate::reference::Reference;

/// A step of a pull or import. `layer` is always the digest that the manifest gives the layer (for
/// docker-archive: its diff id).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The registry is asked what the name stands for.
    Resolving {
        /// The name.
        reference: &'a Reference,
    },
    /// All of the image is here already.
    UpToDate {
        /// Digest of its index or manifest.
        digest: &'a Digest,
    },
    /// The image is known; its layers follow.
    Resolved {
        /// Digest of its index or manifest, where it has one.
        digest: Option<&'a Digest>,
        /// Number of layers.
        layers: usize,
        /// Bytes of the layers that will be moved.
        missing_bytes: u64,
    },
    /// A layer is here already.
    LayerExists {
        /// The layer.
        layer: &'a Digest,
    },
    /// A layer begins to arrive.
    LayerStarted {
        /// The layer.
        layer: &'a Digest,
        /// Bytes that will come.
        size_bytes: u64,
    },
    /// Bytes of a layer arrived.
    LayerBytes {
        /// The layer.
        layer: &'a Digest,
        /// How many, since its start.
        done_bytes: u64,
    },
    /// A connection broke and is taken up again.
    LayerRetry {
        /// The layer.
        layer: &'a Digest,
        /// What happened, one line.
        reason: &'a str,
    },
    /// A layer is verified and stored.
    LayerDone {
        /// The layer.
        layer: &'a Digest,
        /// Bytes of its EROFS blob.
        stored_bytes: u64,
    },
}

/// Receiver of [`Event`]s. It is called from several threads, and should return soon.
pub type Progress<'a> = dyn Fn(Event<'_>) + Sync + 'a;

/// A receiver that ignores everything.
pub fn silent(_: Event<'_>) {}
