//! OCI images: from a name to EROFS layers on this machine's disk.
//!
//! ```text
//! reference, source, digest   names, parsed once
//! registry                    the pull side of the distribution protocol
//! archive                     OCI layouts and docker-save files
//! manifest, config            documents
//! ingest, layer, erofs        a layer's bytes -> verified EROFS blob, nothing unpacked
//! assemble                    layers -> image
//! store                       what is here: find, list, inspect, lease, remove, prune
//! pull                        all of it in order
//! ```
//!
//! The interface is blocking. Finding an image that is here starts neither a thread nor an event queue.
//! `docs/images.md` tells users and operators what they need to know.

pub mod archive;
mod assemble;
pub mod config;
pub mod digest;
pub mod erofs;
mod ingest;
pub mod layer;
pub mod manifest;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod source;
pub mod store;

pub use archive::{ImportError, import};
pub use config::{ContainerConfig, ImageConfig};
pub use digest::Digest;
pub use ingest::LayerFailure;
pub use manifest::Platform;
pub use progress::{Event, Progress};
pub use pull::{PullError, PullOptions, pull};
pub use reference::Reference;
pub use source::{LocalKind, Source};
pub use store::{Image, ImageSummary, LayerBlob, PruneOptions, Pruned, Removed, Store, StoreError};
