//! Inodes of files, and the tree they hang in.
//!
//! Order of calls for a regular file: `begin_file` (its inode is placed), `write_at` for its bytes in
//! ascending order, then its inode goes into the tree under its name. Every other leaf is one call. `finish` writes the directories and the superblock.

use std::fs::File;

use super::chunk::{ChunkCursor, ChunkPlan, Segment};
use super::error::ErofsError;
use super::format::{
    BLOCK, BLOCK_U64, FileType, Form, Inode, InodeRef, Layout, SLOT, Timestamp, encode_device,
};
use super::space::Space;
use super::tree::Tree;
use super::xattr::XattrBody;

/// What a writer may use up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriterLimits {
    /// Bytes of the finished blob, holes included.
    pub(crate) blob_bytes: u64,
    /// Bytes of memory for names and directories.
    pub(crate) metadata_bytes: u64,
    /// Bytes of the blob for the tables of files with holes.
    pub(crate) table_bytes: u64,
}

/// What every inode has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: XattrBody,
}

/// A device number that fits the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceNumber(u32);

impl DeviceNumber {
    /// 0:0, which as a character device is overlayfs's whiteout.
    pub(crate) const WHITEOUT: Self = Self(0);

    pub(crate) fn new(major: u32, minor: u32) -> Option<Self> {
        encode_device(major, minor).map(Self)
    }
}

/// What was written.
#[derive(Clone, Debug)]
pub(crate) struct BlobSummary {
    pub(crate) blob_len: u64,
    pub(crate) root_opaque: bool,
    /// Paths of directories that nothing described, parents first, up to the limit given.
    pub(crate) implied_dirs: Vec<Vec<u8>>,
    pub(crate) implied_dir_count: u64,
    pub(crate) whiteouts: u64,
}

/// Where the bytes of a file that is being written go.
pub(crate) struct FileSlot {
    inode: InodeRef,
    place: Place,
}

enum Place {
    /// Bytes before `split` are in blocks, the rest is behind the inode.
    Flat {
        data: u64,
        split: u64,
        tail: u64,
    },
    Chunked(ChunkCursor),
}

impl FileSlot {
    pub(crate) fn inode(&self) -> InodeRef {
        self.inode
    }
}

pub(crate) struct Writer<'a> {
    pub(super) space: Space<'a>,
    pub(crate) tree: Tree,
    /// The time of compact inodes: that of the first inode. Reproducible images have one time for all.
    pub(super) build_time: Option<Timestamp>,
    pub(super) has_chunks: bool,
    tables_left: u64,
    table_limit: u64,
    scratch: Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Writes to `blob`, which must be empty: what is not written must read as zeros.
    pub(crate) fn new(blob: &'a File, limits: WriterLimits) -> Self {
        Self {
            space: Space::new(blob, limits.blob_bytes),
            tree: Tree::new(limits.metadata_bytes),
            build_time: None,
            has_chunks: false,
            tables_left: limits.table_bytes,
            table_limit: limits.table_bytes,
            scratch: Vec::new(),
        }
    }

    /// Places a regular file of `size` bytes. Bytes that are not written afterwards are zeros.
    ///
    /// # Errors
    /// If the blob becomes too large or cannot be written.
    pub(crate) fn begin_file(&mut self, attributes: &Attributes, size: u64) -> Result<FileSlot, ErofsError> {
        self.begin_flat(FileType::Regular, attributes, size)
    }

    /// Places a regular file that has data in `segments` only: in order, apart, within `size`.
    ///
    /// # Errors
    /// If the blob becomes too large or cannot be written.
    pub(crate) fn begin_sparse_file(
        &mut self,
        attributes: &Attributes,
        size: u64,
        segments: &[Segment],
    ) -> Result<FileSlot, ErofsError> {
        let Some(plan) = ChunkPlan::cheapest(size, segments) else {
            return self.begin_file(attributes, size);
        };
        self.tables_left = self
            .tables_left
            .checked_sub(plan.table_len())
            .ok_or(ErofsError::TablesTooLarge { limit: self.table_limit })?;
        let mut inode = self.inode(FileType::Regular, attributes, size);
        inode.layout = Layout::Chunked;
        inode.location = plan.bits;
        let form = inode.form(self.build_time());
        let first = self.space.take_blocks(plan.data_blocks)?;
        let table = plan.table(segments, first);
        let inode = self.place(&inode, form, attributes, &table)?;
        self.has_chunks = true;
        Ok(FileSlot { inode, place: Place::Chunked(ChunkCursor::new(&plan, first)) })
    }

    /// Writes bytes of the file at `offset`. Offsets ascend; in a sparse file each call stays in a segment.
    ///
    /// # Errors
    /// If the blob cannot be written.
    pub(crate) fn write_at(
        &mut self,
        slot: &mut FileSlot,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), ErofsError> {
        if bytes.is_empty() {
            return Ok(());
        }
        match &mut slot.place {
            Place::Flat { data, split, tail } => {
                let in_blocks = split.saturating_sub(offset).min(bytes.len() as u64) as usize;
                let (head, rest) = bytes.split_at(in_blocks);
                if !head.is_empty() {
                    self.space.write_data(*data + offset, head)?;
                }
                if !rest.is_empty() {
                    let within = offset + in_blocks as u64 - *split;
                    self.space.write_slots(*tail + within, rest)?;
                }
                Ok(())
            }
            Place::Chunked(cursor) => {
                let position = cursor.locate(offset, bytes.len() as u64);
                self.space.write_data(position, bytes)
            }
        }
    }

    /// Writes a symbolic link.
    ///
    /// # Errors
    /// If the blob becomes too large or cannot be written.
    pub(crate) fn symlink(&mut self, attributes: &Attributes, target: &[u8]) -> Result<InodeRef, ErofsError> {
        let mut slot = self.begin_flat(FileType::Symlink, attributes, target.len() as u64)?;
        self.write_at(&mut slot, 0, target)?;
        Ok(slot.inode)
    }

    /// Writes a device node.
    ///
    /// # Errors
    /// If the blob becomes too large or cannot be written.
    pub(crate) fn device(
        &mut self,
        file_type: FileType,
        attributes: &Attributes,
        device: DeviceNumber,
    ) -> Result<InodeRef, ErofsError> {
        self.device_with_links(file_type, attributes, device, 1)
    }

    pub(super) fn device_with_links(
        &mut self,
        file_type: FileType,
        attributes: &Attributes,
        device: DeviceNumber,
        nlink: u32,
    ) -> Result<InodeRef, ErofsError> {
        let mut inode = self.inode(file_type, attributes, 0);
        inode.location = device.0;
        inode.nlink = nlink;
        let form = inode.form(self.build_time());
        self.place(&inode, form, attributes, &[])
    }

    /// Writes a named pipe.
    ///
    /// # Errors
    /// If the blob becomes too large or cannot be written.
    pub(crate) fn fifo(&mut self, attributes: &Attributes) -> Result<InodeRef, ErofsError> {
        self.device(FileType::Fifo, attributes, DeviceNumber::WHITEOUT)
    }

    fn begin_flat(
        &mut self,
        file_type: FileType,
        attributes: &Attributes,
        size: u64,
    ) -> Result<FileSlot, ErofsError> {
        let mut inode = self.inode(file_type, attributes, size);
        let form = inode.form(self.build_time());
        let head = form.len() + attributes.xattrs.len();
        let (layout, split) = flat_layout(head, size);
        inode.layout = layout;
        let first = self.space.take_blocks(split.div_ceil(BLOCK_U64))?;
        inode.location = first as u32;
        let tail_len = (size - split) as usize;
        let position = self.space.take_slots(head + tail_len)?;
        self.write_head(position, &inode, form, attributes, &[])?;
        let tail = position + head as u64;
        let place = Place::Flat { data: first * BLOCK_U64, split, tail };
        Ok(FileSlot { inode: InodeRef { nid: position / SLOT as u64, form }, place })
    }

    /// Places an inode with all that follows it.
    fn place(
        &mut self,
        inode: &Inode,
        form: Form,
        attributes: &Attributes,
        body: &[u8],
    ) -> Result<InodeRef, ErofsError> {
        let position = self.space.take_slots(form.len() + attributes.xattrs.len() + body.len())?;
        self.write_head(position, inode, form, attributes, body)?;
        Ok(InodeRef { nid: position / SLOT as u64, form })
    }

    fn write_head(
        &mut self,
        position: u64,
        inode: &Inode,
        form: Form,
        attributes: &Attributes,
        body: &[u8],
    ) -> Result<(), ErofsError> {
        self.scratch.clear();
        self.scratch.resize(form.len(), 0);
        inode.encode(form, position / SLOT as u64, &mut self.scratch);
        self.scratch.extend_from_slice(attributes.xattrs.as_bytes());
        self.scratch.extend_from_slice(body);
        self.space.write_slots(position, &self.scratch)
    }

    fn inode(&mut self, file_type: FileType, attributes: &Attributes, size: u64) -> Inode {
        self.build_time.get_or_insert(attributes.mtime);
        Inode {
            file_type,
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            size,
            nlink: 1,
            layout: Layout::Plain,
            location: 0,
            xattr_len: attributes.xattrs.len(),
        }
    }

    pub(super) fn build_time(&self) -> Timestamp {
        self.build_time.unwrap_or_default()
    }
}

/// The layout of consecutive bytes behind an inode of `head` bytes, and how many of them are in blocks.
pub(super) fn flat_layout(head: usize, size: u64) -> (Layout, u64) {
    let tail = (size % BLOCK_U64) as usize;
    // Inline data must lie in one block; what starts a block of its own cannot be inline behind a long head.
    if tail > 0 && head + tail <= BLOCK {
        (Layout::Inline, size - tail as u64)
    } else {
        (Layout::Plain, size)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::{DirId, NodeKind};
    use super::*;

    fn read_at<const N: usize>(blob: &File, position: u64) -> [u8; N] {
        let mut bytes = [0; N];
        blob.read_exact_at(&mut bytes, position).unwrap();
        bytes
    }

    #[test]
    fn a_file_of_more_than_4_gib_keeps_its_size_and_its_end() {
        let blob = tempfile::tempfile().unwrap();
        let limits = WriterLimits { blob_bytes: 1 << 40, metadata_bytes: 1 << 20, table_bytes: 0 };
        let mut writer = Writer::new(&blob, limits);
        let size = (4 << 30) + 4096 + 5;
        let mut slot = writer.begin_file(&Attributes::default(), size).unwrap();
        // Block and inline tail in one call.
        writer.write_at(&mut slot, size - 10, b"0123456789").unwrap();
        let inode = slot.inode();
        let kind = NodeKind::Leaf { file_type: FileType::Regular, inode, linked: false };
        writer.tree.insert(DirId::ROOT, b"big", kind).unwrap();
        let summary = writer.finish(0).unwrap();

        let at = inode.nid * SLOT as u64;
        assert_eq!(inode.form, Form::Extended);
        assert_eq!(read_at::<2>(&blob, at), (1u16 | (Layout::Inline as u16) << 1).to_le_bytes());
        assert_eq!(read_at::<8>(&blob, at + 8), size.to_le_bytes());
        assert_eq!(&read_at::<5>(&blob, at + 64), b"56789");
        let first = u64::from(u32::from_le_bytes(read_at::<4>(&blob, at + 16)));
        assert_eq!(&read_at::<5>(&blob, first * BLOCK_U64 + size - 10), b"01234");
        assert!(summary.blob_len > 4 << 30);
    }

    #[test]
    fn a_blob_of_more_blocks_than_addresses_is_refused() {
        let blob = tempfile::tempfile().unwrap();
        let limits = WriterLimits { blob_bytes: u64::MAX, metadata_bytes: 1 << 20, table_bytes: 0 };
        let mut writer = Writer::new(&blob, limits);
        let refused = writer.begin_file(&Attributes::default(), 16 << 40).err();
        assert!(matches!(refused, Some(ErofsError::BlobTooLarge { .. })));
    }
}
