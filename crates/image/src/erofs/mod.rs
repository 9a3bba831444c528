//! A streaming writer of uncompressed EROFS file systems.
//!
//! It owns the on-disk format and where things lie in the blob; it knows nothing of tar, of layers or of
//! whiteouts beyond "this name is one". `layer` decides what the tree is, this module puts it on disk.
//!
//! ```text
//!  block 0        | superblock at 1024, root inode at 1152
//!  cluster 0      | 4 blocks: inodes, their xattrs, tails of files
//!  data           | whole blocks of files, in the order of the stream
//!  cluster 1      | 8 blocks ... up to 64
//!  data           | ...
//!  directories    | blocks of names; their inodes lie in the clusters too
//! ```
//!
//! A file's inode is written when its data pass by, so that of a file only its name and its inode number
//! stay in memory. Directories are kept until the end, since an archive may add to any of them at any time.
//! This works because an EROFS inode number is nothing but an address: inodes need no table.
//!
//! Two runs over the same calls write the same bytes: there is no clock, no random id and no dependence on
//! the order of a hash table.

mod chunk;
mod dirent;
mod error;
mod finish;
mod format;
mod index;
mod reader;
mod space;
mod tree;
mod writer;
mod xattr;

pub(crate) use chunk::Segment;
pub use error::ErofsError;
pub(crate) use format::{FileType, InodeRef, Timestamp};
pub(crate) use reader::{DirReader, Lookup, Owner};
pub(crate) use tree::{DirId, NodeId, NodeKind};
pub(crate) use writer::{Attributes, DeviceNumber, Writer, WriterLimits};
pub(crate) use xattr::XattrBody;
pub use xattr::XattrError;
