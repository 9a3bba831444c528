//! The end of a blob: directories, link counts, whiteouts, the superblock.
//!
//! ```text
//!  plan        walk from the root: sort names, drop pointless whiteouts, place each directory's inode
//!  link        count the names of files that had more than one, correct their inodes
//!  whiteouts   one inode for all of them
//!  write       each directory's inode and blocks; now every inode number is known
//!  superblock  block 0, with the root's inode
//! ```

use std::ops::Range;

use super::dirent::{BlockBuilder, directory_size};
use super::error::ErofsError;
use super::format::{
    BLOCK, BLOCK_U64, FileType, Form, Inode, InodeRef, Layout, LinkPatch, ROOT_POS, SLOT, Superblock,
    Timestamp,
};
use super::tree::{DirId, NodeId, NodeKind, Tree};
use super::writer::{Attributes, BlobSummary, DeviceNumber, Writer, flat_layout};

/// A directory that is reachable, and where it goes. There may be a million, so the rest is computed again.
struct Place {
    dir: DirId,
    /// Its children in `Walk::order`.
    children: Range<u32>,
    subdirs: u32,
    first_block: u32,
    size: u64,
}

impl Place {
    fn children(&self) -> Range<usize> {
        self.children.start as usize..self.children.end as usize
    }

    /// The inode, its form and how many bytes of the directory lie in blocks.
    fn inode(&self, tree: &Tree, build_time: Timestamp) -> (Inode, Form, u64) {
        let attributes = &tree.dir(self.dir).attributes;
        let mut inode = Inode {
            file_type: FileType::Directory,
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: attributes.mtime,
            size: self.size,
            nlink: 2 + self.subdirs,
            layout: Layout::Plain,
            location: self.first_block,
            xattr_len: attributes.xattrs.len(),
        };
        let form = inode.form(build_time);
        let head = form.len() + inode.xattr_len;
        let (layout, split) = flat_layout(head, self.size);
        let beyond_block_zero = self.dir == DirId::ROOT && head + (self.size - split) as usize > ROOT_ROOM;
        if beyond_block_zero {
            return (inode, form, self.size);
        }
        inode.layout = layout;
        (inode, form, split)
    }
}

/// Room for the root's inode and what follows it.
const ROOT_ROOM: usize = BLOCK - ROOT_POS;

struct Walk {
    order: Vec<NodeId>,
    /// Inode numbers of directories by `DirId`; 0 for those that are out of reach.
    nids: Vec<u64>,
    places: Vec<Place>,
    /// Files with several names, once for each name.
    linked: Vec<InodeRef>,
    whiteouts: u64,
    leaves: u64,
    implied_dirs: Vec<Vec<u8>>,
    implied_dir_count: u64,
}

impl Writer<'_> {
    /// Completes the blob. At most `implied_max` paths of implied directories are returned.
    ///
    /// # Errors
    /// If the blob becomes too large or cannot be written, or a file has too many names.
    pub(crate) fn finish(mut self, implied_max: usize) -> Result<BlobSummary, ErofsError> {
        let mut walk = self.plan(implied_max)?;
        let links_removed = self.correct_links(&mut walk)?;
        let whiteout = self.write_whiteout(walk.whiteouts)?;
        let mut block_zero = Box::new([0; BLOCK]);
        for at in 0..walk.places.len() {
            self.write_dir(&walk, at, whiteout, &mut block_zero)?;
        }
        self.space.trim();
        let superblock = Superblock {
            inodes: walk.places.len() as u64 + walk.leaves - links_removed + u64::from(walk.whiteouts > 0),
            build_time: self.build_time(),
            blocks: 0,
            has_chunks: self.has_chunks,
        };
        let blob_len = self.space.finish(|blocks| {
            Superblock { blocks, ..superblock }.seal(&mut block_zero);
            block_zero
        })?;
        Ok(BlobSummary {
            blob_len,
            root_opaque: self.tree.dir(DirId::ROOT).opaque,
            implied_dirs: walk.implied_dirs,
            implied_dir_count: walk.implied_dir_count,
            whiteouts: walk.whiteouts,
        })
    }

    /// Walks the reachable tree, parents first, and gives each directory its place.
    fn plan(&mut self, implied_max: usize) -> Result<Walk, ErofsError> {
        let (starts, order) = self.tree.group_by_parent();
        let mut walk = Walk {
            order,
            nids: vec![0; self.tree.dir_count()],
            places: Vec::new(),
            linked: Vec::new(),
            whiteouts: 0,
            leaves: 0,
            implied_dirs: Vec::new(),
            implied_dir_count: 0,
        };
        let mut pending = vec![(DirId::ROOT, false)];
        while let Some((dir, beneath_opaque)) = pending.pop() {
            let opaque = self.tree.dir(dir).opaque;
            if opaque {
                self.tree.mark_opaque_on_disk(dir).map_err(ErofsError::OpaqueMark)?;
            }
            let hides_all = opaque || beneath_opaque;
            let children = starts[dir.0 as usize] as usize..starts[dir.0 as usize + 1] as usize;
            let children = sort_children(&self.tree, &mut walk, children, hides_all);
            let before = pending.len();
            pending.extend(walk.order[children.clone()].iter().filter_map(
                |node| match self.tree.kind(*node) {
                    NodeKind::Dir(child) => Some((child, hides_all)),
                    _ => None,
                },
            ));
            let subdirs = (pending.len() - before) as u32;
            // Popped from the end: reversed, so that directories come in the order of their names.
            pending[before..].reverse();
            if self.tree.dir(dir).implied {
                walk.implied_dir_count += 1;
                if walk.implied_dirs.len() < implied_max {
                    walk.implied_dirs.push(path_of(&self.tree, dir));
                }
            }
            self.place_dir(&mut walk, dir, children, subdirs)?;
        }
        Ok(walk)
    }

    fn place_dir(
        &mut self,
        walk: &mut Walk,
        dir: DirId,
        children: Range<usize>,
        subdirs: u32,
    ) -> Result<(), ErofsError> {
        let names = Merged::new(&self.tree, &walk.order[children.clone()]);
        let size = directory_size(names.map(|(name, _)| name.len()));
        let children = children.start as u32..children.end as u32;
        let mut place = Place { dir, children, subdirs, first_block: 0, size };
        let (inode, form, split) = place.inode(&self.tree, self.build_time());
        let head = form.len() + inode.xattr_len;
        let position = if dir == DirId::ROOT {
            if head > ROOT_ROOM {
                let limit = ROOT_ROOM - form.len();
                return Err(ErofsError::RootXattrsTooLarge { len: inode.xattr_len, limit });
            }
            ROOT_POS as u64
        } else {
            self.space.take_directory_slots(head + (size - split) as usize)?
        };
        place.first_block = self.space.take_blocks(split.div_ceil(BLOCK_U64))? as u32;
        walk.nids[dir.0 as usize] = position / SLOT as u64;
        walk.places.push(place);
        Ok(())
    }

    /// Writes the link counts of files with several names; returns by how much names exceed files.
    fn correct_links(&mut self, walk: &mut Walk) -> Result<u64, ErofsError> {
        walk.linked.sort_unstable();
        let mut surplus = 0;
        for names in walk.linked.chunk_by(|a, b| a == b) {
            let links = names.len() as u64;
            surplus += links - 1;
            let patch = LinkPatch::new(names[0], links).ok_or(ErofsError::TooManyLinks { links })?;
            self.space.write_slots(patch.position, patch.bytes())?;
        }
        Ok(surplus)
    }

    /// One inode stands for all whiteouts, as overlayfs itself links them; returns its number.
    fn write_whiteout(&mut self, whiteouts: u64) -> Result<u64, ErofsError> {
        if whiteouts == 0 {
            return Ok(0);
        }
        let attributes = Attributes { mtime: self.build_time(), ..Attributes::default() };
        let nlink = u32::try_from(whiteouts).map_err(|_| ErofsError::TooManyLinks { links: whiteouts })?;
        let inode =
            self.device_with_links(FileType::CharDevice, &attributes, DeviceNumber::WHITEOUT, nlink)?;
        Ok(inode.nid)
    }

    fn write_dir(
        &mut self,
        walk: &Walk,
        at: usize,
        whiteout: u64,
        block_zero: &mut [u8; BLOCK],
    ) -> Result<(), ErofsError> {
        let place = &walk.places[at];
        let tree = &self.tree;
        let (inode, form, split) = place.inode(tree, self.build_time());
        let nid = walk.nids[place.dir.0 as usize];
        let mut head = vec![0; form.len()];
        inode.encode(form, nid, &mut head);
        head.extend_from_slice(tree.dir(place.dir).attributes.xattrs.as_bytes());
        let nid_of = |kind| match kind {
            Entry::This => (nid, FileType::Directory),
            Entry::Parent => (walk.nids[tree.dir(place.dir).parent.0 as usize], FileType::Directory),
            Entry::Child(NodeKind::Dir(dir)) => (walk.nids[dir.0 as usize], FileType::Directory),
            Entry::Child(NodeKind::Whiteout) => (whiteout, FileType::CharDevice),
            Entry::Child(NodeKind::Leaf { file_type, inode, .. }) => (inode.nid, file_type),
        };
        let data = u64::from(place.first_block) * BLOCK_U64;
        let mut builder = BlockBuilder::new();
        let mut written = 0;
        for (name, kind) in Merged::new(tree, &walk.order[place.children()]) {
            let (nid, file_type) = nid_of(kind);
            if let Some(block) = builder.push(nid, file_type, name) {
                self.space.write_data(data + written, block)?;
                written += BLOCK_U64;
            }
        }
        let last = builder.finish();
        if written < split {
            self.space.write_data(data + written, last)?;
        } else {
            head.extend_from_slice(last);
        }
        if place.dir == DirId::ROOT {
            block_zero[ROOT_POS..ROOT_POS + head.len()].copy_from_slice(&head);
            return Ok(());
        }
        self.space.write_slots(nid * SLOT as u64, &head)
    }
}

/// Sorts a directory's children by name, leaves out whiteouts that hide nothing, and counts the rest.
///
/// Where nothing of lower layers shows, a whiteout has no purpose, and overlayfs would list it by name.
fn sort_children(tree: &Tree, walk: &mut Walk, range: Range<usize>, hides_all: bool) -> Range<usize> {
    let children = &mut walk.order[range.clone()];
    let mut kept = 0;
    for at in 0..children.len() {
        let node = children[at];
        match tree.kind(node) {
            NodeKind::Whiteout if hides_all => continue,
            NodeKind::Whiteout => walk.whiteouts += 1,
            NodeKind::Leaf { inode, linked, .. } => {
                walk.leaves += 1;
                if linked {
                    walk.linked.push(inode);
                }
            }
            NodeKind::Dir(_) => {}
        }
        children[kept] = node;
        kept += 1;
    }
    children[..kept].sort_unstable_by(|a, b| tree.name(*a).cmp(tree.name(*b)));
    range.start..range.start + kept
}

fn path_of(tree: &Tree, mut dir: DirId) -> Vec<u8> {
    let mut names = Vec::new();
    while let Some(node) = tree.dir(dir).node {
        names.push(tree.name(node));
        dir = tree.parent(node);
    }
    names.reverse();
    names.join(&b'/')
}

/// An entry of a directory on disk.
#[derive(Clone, Copy)]
enum Entry {
    This,
    Parent,
    Child(NodeKind),
}

/// The sorted children with `.` and `..` in their places.
struct Merged<'a> {
    tree: &'a Tree,
    children: &'a [NodeId],
    dots: &'a [(&'static [u8], Entry)],
}

const DOTS: [(&[u8], Entry); 2] = [(b".", Entry::This), (b"..", Entry::Parent)];

impl<'a> Merged<'a> {
    fn new(tree: &'a Tree, children: &'a [NodeId]) -> Self {
        Self { tree, children, dots: &DOTS }
    }
}

impl<'a> Iterator for Merged<'a> {
    type Item = (&'a [u8], Entry);

    fn next(&mut self) -> Option<Self::Item> {
        let child = self.children.split_first().map(|(node, rest)| (self.tree.name(*node), *node, rest));
        match (child, self.dots) {
            (Some((name, node, rest)), dots) if dots.first().is_none_or(|(dot, _)| name < *dot) => {
                self.children = rest;
                Some((name, Entry::Child(self.tree.kind(node))))
            }
            (_, [dot, rest @ ..]) => {
                self.dots = rest;
                Some(*dot)
            }
            (_, []) => None,
        }
    }
}
