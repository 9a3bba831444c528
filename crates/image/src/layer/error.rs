//! Why a layer was not converted.

use std::io;

use super::header::HeaderError;
use super::path::EntryName;
use super::pax::PaxError;
use super::sparse::SparseError;
use crate::erofs::{ErofsError, XattrError};

/// A layer could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The source of the stream failed: network, decompressor, digest.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// The blob could not be written, or would cost more than the limits allow.
    #[error("cannot convert the layer")]
    Blob(#[from] ErofsError),
    /// The stream ends within an entry.
    #[error("the layer is cut off after {offset} bytes")]
    Truncated {
        /// Bytes that there were.
        offset: u64,
    },
    /// The stream is longer than allowed.
    #[error("the layer is larger than {limit} bytes")]
    StreamTooLong {
        /// The limit.
        limit: u64,
    },
    /// The archive has more entries than allowed.
    #[error("the layer has more than {limit} entries")]
    TooManyEntries {
        /// The limit.
        limit: u64,
    },
    /// What should be a header is none.
    #[error("the layer has a bad tar header at byte {offset}")]
    Header {
        /// Position in the stream.
        offset: u64,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// An extended header cannot be read.
    #[error("the layer has a bad extended header at byte {offset}")]
    ExtendedHeader {
        /// Position of its tar header in the stream.
        offset: u64,
        /// What is wrong with it.
        #[source]
        source: PaxError,
    },
    /// An entry is not what a layer may hold.
    #[error("layer entry \"{entry}\" is refused")]
    Entry {
        /// Its name, fit to be printed.
        entry: EntryName,
        /// Why.
        #[source]
        source: EntryError,
    },
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// A `..` component, which could only mean a place outside.
    #[error("its path has a \"..\" component")]
    DotDot,
    /// The path or a component of it is too long.
    #[error("its path is too long")]
    PathTooLong,
    /// Only a directory can stand for the layer's root.
    #[error("it names the root, which can only be a directory")]
    RootNotDirectory,
    /// The path leads through something that is no directory; symbolic links are never followed.
    #[error("its path leads through \"{0}\", which is not a directory in this layer")]
    ThroughNonDirectory(EntryName),
    /// A whiteout of nothing, of `.` or of `..`, or a path through a name reserved for whiteouts.
    #[error("it is not a valid whiteout")]
    BadWhiteout,
    /// A device number that the format cannot hold.
    #[error("device number {major}:{minor} is out of range")]
    BadDevice {
        /// Major number.
        major: u64,
        /// Minor number.
        minor: u64,
    },
    /// The device by which overlayfs marks deleted files must not come from outside.
    #[error("character device 0:0 is reserved for whiteouts")]
    ReservedDevice,
    /// A hard link whose target is not there by then.
    #[error("its hard link target \"{0}\" is not in the layer before it")]
    LinkTargetMissing(EntryName),
    /// A hard link to a directory, a symbolic link or a whiteout.
    #[error("its hard link target \"{0}\" is not a file")]
    LinkTargetNotFile(EntryName),
    /// A hard link whose target has a `..` component.
    #[error("its hard link target \"{0}\" is outside the layer")]
    LinkTargetOutside(EntryName),
    /// A hard link in the place of a symbolic link.
    #[error("it would put a hard link over a symbolic link")]
    LinkOverSymlink,
    /// A symbolic link to nothing or to more than Linux can follow.
    #[error("its symbolic link target has {len} bytes")]
    BadSymlinkTarget {
        /// Bytes of the target.
        len: usize,
    },
    /// A file larger than allowed.
    #[error("its size is {size} bytes, more than {limit}")]
    FileTooLarge {
        /// What it claims.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// An owner that Linux does not have.
    #[error("its owner {id} is out of range")]
    BadOwner {
        /// User or group id.
        id: u64,
    },
    /// An entry type that has no meaning in a layer.
    #[error("its type {0:?} is not supported")]
    UnknownType(char),
    /// An extended attribute that cannot be stored.
    #[error("its extended attribute \"{name}\" cannot be stored")]
    Xattr {
        /// Name of the attribute.
        name: EntryName,
        /// Why.
        #[source]
        source: XattrError,
    },
    /// More extended attributes than allowed.
    #[error("its extended attributes have more than {limit} bytes")]
    XattrsTooLarge {
        /// The limit.
        limit: usize,
    },
    /// The map of a sparse file is wrong.
    #[error("its map of data and holes is wrong")]
    Sparse(#[source] SparseError),
}
