//! A file tree as a value, whoever reads it, and what differs between two.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use sha2::{Digest, Sha256};

/// One name of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// `S_IFMT` and permission bits.
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    /// 0 for directories: file systems differ.
    pub(crate) nlink: u64,
    pub(crate) size: u64,
    /// Digest of a file's bytes, or a link's target.
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// First of all names of the same file.
    pub(crate) first_name: Vec<u8>,
}

/// All names, without a leading slash; the root is the empty one.
pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

pub(crate) const S_IFMT: u32 = 0o170_000;
pub(crate) const S_IFREG: u32 = 0o100_000;
pub(crate) const S_IFDIR: u32 = 0o040_000;
pub(crate) const S_IFLNK: u32 = 0o120_000;
pub(crate) const S_IFCHR: u32 = 0o020_000;

/// Reads a directory of this machine.
pub(crate) fn of_directory(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut inodes = HashMap::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let content = match meta.mode() & S_IFMT {
            S_IFREG => digest(fs::File::open(&path).unwrap()),
            S_IFLNK => fs::read_link(&path).unwrap().into_os_string().into_vec(),
            _ => Vec::new(),
        };
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let node = Node {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec() as u32),
            device: (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())),
            nlink: if meta.is_dir() { 0 } else { meta.nlink() },
            size: if meta.is_dir() { 0 } else { meta.size() },
            content,
            xattrs: xattrs(&path),
            first_name: Vec::new(),
        };
        inodes.insert(name.clone(), meta.ino());
        tree.insert(name, node);
    }
    group_names(&mut tree, &inodes);
    tree
}

/// Reads a blob with erofs-rs.
pub(crate) fn of_blob(blob: &[u8]) -> Tree {
    let fs = EroFS::new(SliceImage::new(blob)).unwrap();
    let mut tree = Tree::new();
    let mut inodes = HashMap::new();
    let root = fs.get_inode(fs.super_block().root_inode_id()).unwrap();
    tree.insert(Vec::new(), blob_node(&fs, root));
    inodes.insert(Vec::new(), root.id());
    for entry in fs.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let name = entry.dir_entry.path().into_vec().strip_prefix(b"/").unwrap().to_vec();
        tree.insert(name.clone(), blob_node(&fs, entry.inode));
        inodes.insert(name, entry.inode.id());
    }
    group_names(&mut tree, &inodes);
    tree
}

fn blob_node(fs: &EroFS<SliceImage<'_>>, inode: erofs_rs::types::Inode) -> Node {
    let content = if inode.is_file() {
        digest(fs.open_inode_file(inode).unwrap())
    } else if inode.is_symlink() {
        fs.read_link_inode(inode).unwrap().into_vec()
    } else {
        Vec::new()
    };
    let file_type = inode.file_type();
    let kind = [
        (file_type.is_dir(), S_IFDIR),
        (file_type.is_file(), S_IFREG),
        (file_type.is_symlink(), S_IFLNK),
        (file_type.is_char_device(), S_IFCHR),
        (file_type.is_block_device(), 0o060_000),
        (file_type.is_fifo(), 0o010_000),
    ];
    let kind = kind.into_iter().find(|(is, _)| *is).expect("a known type").1;
    Node {
        mode: kind | inode.permissions().mode(),
        owner: (inode.uid(), inode.gid()),
        mtime: inode.modified_unix(),
        device: inode.device().unwrap_or_default(),
        nlink: if inode.is_dir() { 0 } else { u64::from(inode.nlink()) },
        size: if inode.is_dir() { 0 } else { inode.data_size() },
        content,
        xattrs: fs.xattrs_inode(inode).unwrap(),
        first_name: Vec::new(),
    }
}

/// Panics, with what differs, unless both trees are the same.
pub(crate) fn assert_same(left_name: &str, left: &Tree, right_name: &str, right: &Tree) {
    let mut report = String::new();
    let mut names: Vec<_> = left.keys().chain(right.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let (a, b) = (left.get(name), right.get(name));
        if a != b {
            let shown = String::from_utf8_lossy(name);
            writeln!(report, "{shown:?}\n  {left_name}: {a:?}\n  {right_name}: {b:?}").unwrap();
        }
    }
    assert!(report.is_empty(), "{left_name} and {right_name} differ:\n{report}");
}

fn group_names(tree: &mut Tree, inodes: &HashMap<Vec<u8>, u64>) {
    let mut first = HashMap::new();
    for (name, node) in tree.iter_mut() {
        node.first_name = first.entry(inodes[name]).or_insert_with(|| name.clone()).clone();
    }
}

fn digest(mut reader: impl Read) -> Vec<u8> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer).unwrap() {
            0 => return hasher.finalize().to_vec(),
            len => hasher.update(&buffer[..len]),
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0u8; 1 << 16];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}
