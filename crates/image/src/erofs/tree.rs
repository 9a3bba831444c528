//! Names in memory: which directory holds which name, and what it stands for.
//!
//! 16 bytes a name, the name itself, and 6 to 11 bytes of index; a directory costs another 96 or so. What
//! a name stands for can change until the end (a later entry of an archive wins); a directory that lost
//! its name stays behind with its children, unreachable, and is not written.

use std::hash::BuildHasher;

use super::error::ErofsError;
use super::format::{FileType, Form, InodeRef, NAME_MAX};
use super::index::Index;
use super::writer::Attributes;

/// A directory, by the order of creation; 0 is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirId(pub(super) u32);

impl DirId {
    pub(crate) const ROOT: Self = Self(0);

    fn index(self) -> usize {
        self.0 as usize
    }
}

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeId(pub(super) u32);

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeKind {
    /// A directory.
    Dir(DirId),
    /// "Nothing here, whatever lower layers say": overlayfs's character device 0:0.
    Whiteout,
    /// Anything else; its inode is in the blob already.
    Leaf {
        /// Never `Directory`.
        file_type: FileType,
        inode: InodeRef,
        /// Whether the inode has, or had, another name.
        linked: bool,
    },
}

const NID_BITS: u32 = 48;
const TAG_TYPE: u64 = 0x0f;
const TAG_LINKED: u64 = 0x10;
const TAG_EXTENDED: u64 = 0x20;
const TAG_WHITEOUT: u64 = 0x40;

impl NodeKind {
    fn pack(self) -> u64 {
        let (tag, number) = match self {
            Self::Dir(dir) => (FileType::Directory as u64, u64::from(dir.0)),
            Self::Whiteout => (TAG_WHITEOUT, 0),
            Self::Leaf { file_type, inode, linked } => {
                let linked = if linked { TAG_LINKED } else { 0 };
                let extended = if inode.form == Form::Extended { TAG_EXTENDED } else { 0 };
                (file_type as u64 | linked | extended, inode.nid)
            }
        };
        tag << NID_BITS | number
    }

    fn unpack(packed: u64) -> Self {
        let (tag, number) = (packed >> NID_BITS, packed & ((1 << NID_BITS) - 1));
        match FileType::from_bits((tag & TAG_TYPE) as u8) {
            None => Self::Whiteout,
            Some(FileType::Directory) => Self::Dir(DirId(number as u32)),
            Some(file_type) => {
                let form = if tag & TAG_EXTENDED != 0 { Form::Extended } else { Form::Compact };
                let inode = InodeRef { nid: number, form };
                Self::Leaf { file_type, inode, linked: tag & TAG_LINKED != 0 }
            }
        }
    }
}

struct Node {
    parent: DirId,
    /// Offset in `names` of the length byte that the name follows.
    name: u32,
    kind: u64,
}

pub(crate) struct Dir {
    pub(crate) attributes: Attributes,
    pub(crate) parent: DirId,
    /// The name it was created under; the root has none.
    pub(crate) node: Option<NodeId>,
    /// Nothing of lower layers shows in it.
    pub(crate) opaque: bool,
    /// No entry described it: it is there because something lies beneath it.
    pub(crate) implied: bool,
}

pub(crate) struct Tree {
    nodes: Vec<Node>,
    names: Vec<u8>,
    dirs: Vec<Dir>,
    index: Index,
    xattr_bytes: u64,
    memory_limit: u64,
}

impl Tree {
    pub(crate) fn new(memory_limit: u64) -> Self {
        let root = Dir {
            attributes: implied_attributes(),
            parent: DirId::ROOT,
            node: None,
            opaque: false,
            implied: true,
        };
        Self {
            nodes: Vec::new(),
            names: Vec::new(),
            dirs: vec![root],
            index: Index::new(),
            xattr_bytes: 0,
            memory_limit,
        }
    }

    pub(crate) fn lookup(&self, parent: DirId, name: &[u8]) -> Option<NodeId> {
        let hash = self.index.hash(parent.0, name);
        self.index.find(hash, |node| self.is(node, parent, name)).map(NodeId)
    }

    fn is(&self, node: u32, parent: DirId, name: &[u8]) -> bool {
        self.nodes[node as usize].parent == parent && self.name(NodeId(node)) == name
    }

    pub(crate) fn kind(&self, node: NodeId) -> NodeKind {
        NodeKind::unpack(self.nodes[node.0 as usize].kind)
    }

    pub(crate) fn parent(&self, node: NodeId) -> DirId {
        self.nodes[node.0 as usize].parent
    }

    pub(crate) fn name(&self, node: NodeId) -> &[u8] {
        name_at(&self.names, self.nodes[node.0 as usize].name)
    }

    pub(crate) fn dir(&self, dir: DirId) -> &Dir {
        &self.dirs[dir.index()]
    }

    pub(crate) fn dir_mut(&mut self, dir: DirId) -> &mut Dir {
        &mut self.dirs[dir.index()]
    }

    pub(crate) fn dir_count(&self) -> usize {
        self.dirs.len()
    }

    /// Changes what a name stands for.
    pub(crate) fn set_kind(&mut self, node: NodeId, kind: NodeKind) {
        self.nodes[node.0 as usize].kind = kind.pack();
    }

    /// Adds a name that the directory does not have yet.
    ///
    /// # Errors
    /// If the memory limit is reached.
    pub(crate) fn insert(
        &mut self,
        parent: DirId,
        name: &[u8],
        kind: NodeKind,
    ) -> Result<NodeId, ErofsError> {
        debug_assert!(!name.is_empty() && name.len() <= NAME_MAX);
        let out_of_memory = ErofsError::OutOfMetadataMemory { limit: self.memory_limit };
        let (Ok(id), Ok(offset)) = (u32::try_from(self.nodes.len()), u32::try_from(self.names.len())) else {
            return Err(out_of_memory);
        };
        if id == u32::MAX {
            return Err(out_of_memory);
        }
        let hash = self.index.hash(parent.0, name);
        self.names.push(name.len() as u8);
        self.names.extend_from_slice(name);
        self.nodes.push(Node { parent, name: offset, kind: kind.pack() });
        let (nodes, names) = (&self.nodes, &self.names);
        self.index.insert(hash, id, |keys, node| {
            let node = &nodes[node as usize];
            keys.hash_one((node.parent.0, name_at(names, node.name)))
        });
        self.check_memory()?;
        Ok(NodeId(id))
    }

    /// Makes a directory with the attributes of one that nobody described.
    ///
    /// # Errors
    /// If the memory limit is reached.
    pub(crate) fn new_dir(&mut self, parent: DirId) -> Result<DirId, ErofsError> {
        let id = u32::try_from(self.dirs.len())
            .map_err(|_| ErofsError::OutOfMetadataMemory { limit: self.memory_limit })?;
        let attributes = implied_attributes();
        self.dirs.push(Dir { attributes, parent, node: None, opaque: false, implied: true });
        self.check_memory()?;
        Ok(DirId(id))
    }

    /// Sets what the directory's own entry says.
    ///
    /// # Errors
    /// If the memory limit is reached.
    pub(crate) fn describe(&mut self, dir: DirId, attributes: Attributes) -> Result<(), ErofsError> {
        let record = &mut self.dirs[dir.index()];
        self.xattr_bytes -= record.attributes.xattrs.len() as u64;
        self.xattr_bytes += attributes.xattrs.len() as u64;
        record.attributes = attributes;
        record.implied = false;
        self.check_memory()
    }

    /// Gives a directory the attribute by which overlayfs knows that it hides lower layers.
    ///
    /// # Errors
    /// If its other attributes leave no room.
    pub(crate) fn mark_opaque_on_disk(&mut self, dir: DirId) -> Result<(), super::XattrError> {
        self.dirs[dir.index()].attributes.xattrs.push(b"trusted.overlay.opaque", b"y")
    }

    /// Children of every directory, grouped; unsorted within a directory.
    pub(crate) fn group_by_parent(&self) -> (Vec<u32>, Vec<NodeId>) {
        let mut starts = vec![0u32; self.dirs.len() + 1];
        for node in &self.nodes {
            starts[node.parent.index() + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut order = vec![NodeId(0); self.nodes.len()];
        for (id, node) in self.nodes.iter().enumerate() {
            let at = &mut next[node.parent.index()];
            order[*at as usize] = NodeId(id as u32);
            *at += 1;
        }
        (starts, order)
    }

    /// Bytes in use, by what the vectors have claimed, which includes the room they keep for growth.
    pub(crate) fn memory(&self) -> u64 {
        let vectors = self.nodes.capacity() * size_of::<Node>()
            + self.names.capacity()
            + self.dirs.capacity() * size_of::<Dir>();
        vectors as u64 + self.index.memory() + self.xattr_bytes
    }

    fn check_memory(&self) -> Result<(), ErofsError> {
        if self.memory() > self.memory_limit {
            return Err(ErofsError::OutOfMetadataMemory { limit: self.memory_limit });
        }
        Ok(())
    }
}

fn name_at(names: &[u8], offset: u32) -> &[u8] {
    let at = offset as usize;
    &names[at + 1..at + 1 + usize::from(names[at])]
}

/// What a directory gets that no entry describes: what `mkdir -p` as root would make.
fn implied_attributes() -> Attributes {
    Attributes { mode: 0o755, ..Attributes::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: NodeKind = NodeKind::Leaf {
        file_type: FileType::Fifo,
        inode: InodeRef { nid: (1 << 39) + 5, form: Form::Extended },
        linked: true,
    };

    #[test]
    fn what_a_name_stands_for_survives_packing() {
        for kind in [LEAF, NodeKind::Whiteout, NodeKind::Dir(DirId(u32::MAX))] {
            assert_eq!(NodeKind::unpack(kind.pack()), kind);
        }
    }

    #[test]
    fn names_are_found_in_their_own_directory_only() {
        let mut tree = Tree::new(1 << 20);
        let sub = tree.new_dir(DirId::ROOT).unwrap();
        tree.insert(DirId::ROOT, b"sub", NodeKind::Dir(sub)).unwrap();
        let leaf = tree.insert(sub, b"leaf", LEAF).unwrap();
        assert_eq!(tree.lookup(sub, b"leaf"), Some(leaf));
        assert_eq!(tree.lookup(DirId::ROOT, b"leaf"), None);
        assert_eq!(tree.kind(leaf), LEAF);
        assert_eq!(tree.name(leaf), b"leaf");
    }

    #[test]
    fn the_memory_limit_ends_growth() {
        let mut tree = Tree::new(100_000);
        let refused = (0..100_000u32)
            .find_map(|n| tree.insert(DirId::ROOT, format!("{n:0200}").as_bytes(), LEAF).err())
            .expect("the limit is reached");
        assert!(matches!(refused, ErofsError::OutOfMetadataMemory { limit: 100_000 }));
    }
}
