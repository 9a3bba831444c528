//! From a layer's tar stream to an EROFS blob, in one pass, without unpacking anything.
//!
//! ```text
//!  input    bytes of the stream, counted and limited
//!  header   one 512-byte header          pure
//!  pax      extended header records      pure
//!  sparse   maps of GNU sparse files     pure, but for the map that lies in the data
//!  entry    the three put together: one entry at a time
//!  path     names: components, whiteouts, how to show them
//!  convert  entries -> tree and inodes of `erofs`
//! ```
//!
//! A layer is hostile. No name in it is ever given to the host's file system: names only choose places in a
//! tree in memory, and symbolic links are content, never followed. Time is linear in the stream, memory is
//! bounded by [`LayerLimits`]. What cannot be what an honest archiver wrote is refused with the entry's name;
//! the blob is worthless then and the caller throws it away.
//!
//! Where tar dialects leave room, entries mean what they mean to Go's `archive/tar`, with which container
//! engines write and read layers.

mod convert;
mod entry;
mod error;
mod header;
mod input;
mod limits;
mod path;
mod pax;
mod sparse;

pub use convert::{LayerSummary, convert};
pub use error::{EntryError, LayerError};
pub use header::HeaderError;
pub use limits::LayerLimits;
pub use path::EntryName;
pub use pax::PaxError;
pub use sparse::SparseError;

pub use crate::erofs::{ErofsError, XattrError};
