//! The conversion: each entry changes the tree, and its data go to the blob as they pass.
//!
//! Later entries win, as they do when an archive is unpacked: a file replaces whatever had its name, a
//! directory entry over a directory replaces its attributes and keeps its content.
//!
//! Whiteouts concern lower layers only, so they must not depend on where they stand among the entries of
//! their own layer:
//!
//! | whiteout of | becomes |
//! |---|---|
//! | a name that is not in this layer | character device 0:0 |
//! | a file of this layer | nothing: the file hides what is below |
//! | a directory of this layer | the directory becomes opaque |
//! | a directory's content (`.wh..wh..opq`) | the directory becomes opaque |
//!
//! A directory that takes the place of anything else becomes opaque for the same reason.

use std::fs::File;
use std::io::Read;

use super::entry::{Entries, Entry, EntryKind};
use super::error::{EntryError, LayerError};
use super::limits::LayerLimits;
use super::path::{EntryName, Target, classify, components};
use crate::erofs::{
    DeviceNumber, DirId, ErofsError, FileType, InodeRef, NodeId, NodeKind, Segment, Writer, WriterLimits,
};

/// Paths of implied directories that a summary lists.
const IMPLIED_DIRS_LISTED: usize = 1024;

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSummary {
    /// Bytes of the blob: a multiple of 4096.
    pub blob_len: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of the stream.
    pub uncompressed_bytes: u64,
    /// The layer hides all layers below it. overlayfs does not look at the root's own mark, so whoever
    /// stacks layers must leave the lower ones out.
    pub root_opaque: bool,
    /// Whiteouts in the blob.
    pub whiteouts: u64,
    /// Directories that have no entry of their own and so are root's, 0755: at most 1024 paths without a
    /// leading slash, parents first. Where a lower layer describes such a directory, engines that unpack
    /// layers one over the other keep that description.
    pub implied_dirs: Vec<Vec<u8>>,
    /// How many there are, listed or not; the root counts if it has no entry.
    pub implied_dir_count: u64,
}

/// Converts a layer's uncompressed tar stream to an EROFS blob.
///
/// `tar` is read to its very end, also beyond the end of the archive, so that a reader which hashes what
/// passes has seen all of it. `blob` must be empty and open for writing. On error what it holds is worthless.
///
/// # Errors
/// If the stream fails, is malformed or hostile, or costs more than `limits`; if the blob cannot be written.
pub fn convert(tar: impl Read, blob: &File, limits: &LayerLimits) -> Result<LayerSummary, LayerError> {
    let writer_limits = WriterLimits {
        blob_bytes: limits.blob_bytes,
        metadata_bytes: limits.metadata_bytes,
        table_bytes: limits.sparse_table_bytes,
    };
    let mut converter = Converter {
        entries: Entries::new(tar, limits),
        writer: Writer::new(blob, writer_limits),
        path_limit: limits.path_bytes,
        last_parent: None,
    };
    let mut count = 0;
    while let Some(entry) = converter.entries.next()? {
        count += 1;
        if count > limits.entries {
            return Err(LayerError::TooManyEntries { limit: limits.entries });
        }
        converter.apply(&entry).map_err(|error| error.of(&entry))?;
    }
    let uncompressed_bytes = converter.entries.offset();
    let blob = converter.writer.finish(IMPLIED_DIRS_LISTED)?;
    Ok(LayerSummary {
        blob_len: blob.blob_len,
        entries: count,
        uncompressed_bytes,
        root_opaque: blob.root_opaque,
        whiteouts: blob.whiteouts,
        implied_dirs: blob.implied_dirs,
        implied_dir_count: blob.implied_dir_count,
    })
}

struct Converter<'a, R> {
    entries: Entries<'a, R>,
    writer: Writer<'a>,
    path_limit: usize,
    /// The parent found last: archives list directories together.
    last_parent: Option<(Vec<u8>, DirId)>,
}

/// What can go wrong with an entry: either the entry is at fault, or everything is.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Blob(#[from] ErofsError),
}

impl ApplyError {
    fn of(self, entry: &Entry) -> LayerError {
        match self {
            Self::Entry(source) => LayerError::Entry { entry: EntryName::new(&entry.path), source },
            Self::Layer(error) => error,
            Self::Blob(error) => LayerError::Blob(error),
        }
    }
}

impl<R: Read> Converter<'_, R> {
    fn apply(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        match classify(&entry.path, self.path_limit)? {
            Target::Aufs => Ok(()),
            Target::Root => self.describe_root(entry),
            Target::Opaque { parent } => {
                let dir = self.directory(parent)?;
                self.writer.tree.dir_mut(dir).opaque = true;
                Ok(())
            }
            Target::Whiteout { parent, name } => {
                let parent = self.directory(parent)?;
                self.whiteout(parent, name)
            }
            Target::Name { parent, name } => {
                let parent = self.directory(parent)?;
                self.create(entry, parent, name)
            }
        }
    }

    fn describe_root(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        if entry.kind != EntryKind::Directory {
            return Err(EntryError::RootNotDirectory.into());
        }
        self.writer.tree.describe(DirId::ROOT, entry.attributes.clone())?;
        Ok(())
    }

    fn whiteout(&mut self, parent: DirId, name: &[u8]) -> Result<(), ApplyError> {
        let tree = &mut self.writer.tree;
        match tree.lookup(parent, name).map(|node| tree.kind(node)) {
            None => {
                tree.insert(parent, name, NodeKind::Whiteout)?;
            }
            Some(NodeKind::Dir(dir)) => tree.dir_mut(dir).opaque = true,
            Some(NodeKind::Whiteout | NodeKind::Leaf { .. }) => {}
        }
        Ok(())
    }

    fn create(&mut self, entry: &Entry, parent: DirId, name: &[u8]) -> Result<(), ApplyError> {
        let attributes = &entry.attributes;
        let (file_type, inode) = match entry.kind {
            EntryKind::Directory => {
                let dir = self.make_dir(parent, name)?;
                self.writer.tree.describe(dir, entry.attributes.clone())?;
                return Ok(());
            }
            EntryKind::HardLink => return self.hard_link(entry, parent, name),
            EntryKind::File => (FileType::Regular, self.file(entry)?),
            EntryKind::Symlink => {
                let len = entry.link.len();
                // PATH_MAX with its zero byte.
                if len == 0 || len > 4095 {
                    return Err(EntryError::BadSymlinkTarget { len }.into());
                }
                (FileType::Symlink, self.writer.symlink(attributes, &entry.link)?)
            }
            EntryKind::CharDevice(DeviceNumber::WHITEOUT) => return Err(EntryError::ReservedDevice.into()),
            EntryKind::CharDevice(device) => {
                (FileType::CharDevice, self.writer.device(FileType::CharDevice, attributes, device)?)
            }
            EntryKind::BlockDevice(device) => {
                (FileType::BlockDevice, self.writer.device(FileType::BlockDevice, attributes, device)?)
            }
            EntryKind::Fifo => (FileType::Fifo, self.writer.fifo(attributes)?),
        };
        self.put(parent, name, NodeKind::Leaf { file_type, inode, linked: false })
    }

    /// Gives a name a meaning, whatever it meant before.
    fn put(&mut self, parent: DirId, name: &[u8], kind: NodeKind) -> Result<(), ApplyError> {
        let tree = &mut self.writer.tree;
        match tree.lookup(parent, name) {
            Some(node) => {
                if matches!(tree.kind(node), NodeKind::Dir(_)) {
                    // The directory, or one above the remembered one, is gone.
                    self.last_parent = None;
                }
                tree.set_kind(node, kind);
            }
            None => {
                tree.insert(parent, name, kind)?;
            }
        }
        Ok(())
    }

    /// The directory of that name, made if need be.
    fn make_dir(&mut self, parent: DirId, name: &[u8]) -> Result<DirId, ErofsError> {
        let tree = &mut self.writer.tree;
        let found = tree.lookup(parent, name);
        if let Some(NodeKind::Dir(dir)) = found.map(|node| tree.kind(node)) {
            return Ok(dir);
        }
        let dir = tree.new_dir(parent)?;
        let node: NodeId = match found {
            Some(node) => {
                // What was there, a whiteout or a file, hid what lies below: so must the directory.
                tree.dir_mut(dir).opaque = true;
                tree.set_kind(node, NodeKind::Dir(dir));
                node
            }
            None => tree.insert(parent, name, NodeKind::Dir(dir))?,
        };
        tree.dir_mut(dir).node = Some(node);
        Ok(dir)
    }

    fn file(&mut self, entry: &Entry) -> Result<InodeRef, ApplyError> {
        let whole = [Segment { offset: 0, len: entry.size }];
        let (mut slot, segments) = match &entry.segments {
            Some(segments) => {
                (self.writer.begin_sparse_file(&entry.attributes, entry.size, segments)?, segments.as_slice())
            }
            None => (self.writer.begin_file(&entry.attributes, entry.size)?, &whole[..]),
        };
        for segment in segments {
            let mut offset = segment.offset;
            let writer = &mut self.writer;
            self.entries.data(segment.len, |bytes| {
                writer.write_at(&mut slot, offset, bytes)?;
                offset += bytes.len() as u64;
                Ok(())
            })?;
        }
        Ok(slot.inode())
    }

    fn hard_link(&mut self, entry: &Entry, parent: DirId, name: &[u8]) -> Result<(), ApplyError> {
        let target = self.link_target(&entry.link)?;
        let shown = || EntryName::new(&entry.link);
        let NodeKind::Leaf { file_type, inode, .. } = self.writer.tree.kind(target) else {
            return Err(EntryError::LinkTargetNotFile(shown()).into());
        };
        if file_type == FileType::Symlink {
            return Err(EntryError::LinkTargetNotFile(shown()).into());
        }
        let tree = &mut self.writer.tree;
        if let Some(NodeKind::Leaf { file_type: FileType::Symlink, .. }) =
            tree.lookup(parent, name).map(|node| tree.kind(node))
        {
            return Err(EntryError::LinkOverSymlink.into());
        }
        let kind = NodeKind::Leaf { file_type, inode, linked: true };
        tree.set_kind(target, kind);
        self.put(parent, name, kind)
    }

    /// What a hard link's target names in this layer.
    fn link_target(&self, link: &[u8]) -> Result<NodeId, EntryError> {
        let shown = || EntryName::new(link);
        let tree = &self.writer.tree;
        let (mut dir, mut found) = (DirId::ROOT, None);
        for name in components(link) {
            if name == b".." {
                return Err(EntryError::LinkTargetOutside(shown()));
            }
            dir = match found.map(|node| tree.kind(node)) {
                None => dir,
                Some(NodeKind::Dir(dir)) => dir,
                Some(_) => return Err(EntryError::ThroughNonDirectory(shown())),
            };
            found = Some(tree.lookup(dir, name).ok_or_else(|| EntryError::LinkTargetMissing(shown()))?);
        }
        found.ok_or_else(|| EntryError::LinkTargetNotFile(shown()))
    }

    /// The directory of that path, with all missing ones made on the way.
    fn directory(&mut self, path: &[u8]) -> Result<DirId, ApplyError> {
        if let Some((last, dir)) = &self.last_parent
            && last == path
        {
            return Ok(*dir);
        }
        let mut dir = DirId::ROOT;
        let mut walked = 0;
        for name in components(path) {
            walked += 1;
            let tree = &self.writer.tree;
            if let Some(NodeKind::Leaf { .. }) = tree.lookup(dir, name).map(|node| tree.kind(node)) {
                let through = components(path).take(walked).collect::<Vec<_>>().join(&b'/');
                return Err(EntryError::ThroughNonDirectory(EntryName::new(&through)).into());
            }
            dir = self.make_dir(dir, name)?;
        }
        let last = self.last_parent.get_or_insert_with(|| (Vec::new(), dir));
        last.0.clear();
        last.0.extend_from_slice(path);
        last.1 = dir;
        Ok(dir)
    }
}
