//! What stops an EROFS blob from being written.

use std::io;

use super::xattr::XattrError;

/// A blob could not be written. What is in the file by then is not a file system.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The operating system refused a write, most often because the disk is full.
    #[error("cannot write the blob")]
    Write(#[source] io::Error),
    /// The file system would have more blocks than the limit or the format allows.
    #[error("the blob would be larger than {limit} bytes")]
    BlobTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// Names, directories and their attributes need more memory than allowed.
    #[error("names and directories need more than {limit} bytes of memory")]
    OutOfMetadataMemory {
        /// The limit in bytes.
        limit: u64,
    },
    /// The tables of files with holes are larger than allowed. They are the one thing that a few bytes of an
    /// archive can make large.
    #[error("files with holes need more than {limit} bytes of tables")]
    TablesTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The root directory's inode must stay in block 0, which leaves little room for its attributes.
    #[error("the root directory has {len} bytes of extended attributes, more than the {limit} that fit")]
    RootXattrsTooLarge {
        /// Bytes that the attributes need.
        len: usize,
        /// Bytes there are.
        limit: usize,
    },
    /// A directory has so many attributes that the mark of an opaque one does not fit.
    #[error("cannot mark a directory as opaque")]
    OpaqueMark(#[source] XattrError),
    /// A file has more names than its inode can count: 65 535 in the small form (ext4 stops at 65 000).
    #[error("a file has {links} names, more than its inode can count")]
    TooManyLinks {
        /// Names found.
        links: u64,
    },
}
