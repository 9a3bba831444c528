//! Looks directories up in a blob that our writer made: enough to know what a stack of layers shows.
//!
//! It understands what the writer writes and no more: block 0 has the metadata, directories are plain or
//! inline and sorted as a whole. A blob that is otherwise gives an error, never a panic or a long search.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::dirent::DIRENT_LEN;
use super::format::{BLOCK, BLOCK_U64, FileType, Layout, ROOT_POS, SLOT, SUPERBLOCK_POS};

const COMPACT_LEN: u64 = 32;
const EXTENDED_LEN: u64 = 64;
const XATTR_HEADER_LEN: usize = 12;
const XATTR_TRUSTED: u8 = 4;
const OPAQUE: &[u8] = b"overlay.opaque";

/// What a path is in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Not in this layer; lower layers show through unless a directory on the way is opaque.
    Absent {
        /// Lower layers do not show through.
        hides: bool,
    },
    /// The path, or something on the way to it, is a file, a link or a whiteout.
    Other,
    /// A directory.
    Dir {
        /// Its attributes.
        attributes: Owner,
        /// It, or a directory on the way, is opaque: lower layers do not show through.
        hides: bool,
    },
}

/// Who may do what with a directory, and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Permission bits, `07777`.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
}

/// An open blob.
pub(crate) struct DirReader {
    file: File,
    build_time: i64,
}

struct DirInode {
    attributes: Owner,
    size: u64,
    layout: Layout,
    first_block: u64,
    /// Position of the inline tail.
    tail: u64,
    opaque: bool,
}

impl DirReader {
    /// # Errors
    /// Where the blob cannot be read.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let mut field = [0; 8];
        file.read_exact_at(&mut field, SUPERBLOCK_POS as u64 + 24)?;
        Ok(Self { file, build_time: i64::from_le_bytes(field) })
    }

    /// Looks up a path without a leading slash; the root is empty. Links are not followed.
    ///
    /// # Errors
    /// Where the blob cannot be read or is not ours.
    pub(crate) fn lookup(&self, path: &[u8]) -> io::Result<Lookup> {
        let mut inode = self.dir_inode((ROOT_POS / SLOT) as u64)?;
        let mut hides = inode.opaque;
        for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            match self.find(&inode, name)? {
                None => return Ok(Lookup::Absent { hides }),
                Some((_, kind)) if kind != FileType::Directory as u8 => return Ok(Lookup::Other),
                Some((nid, _)) => inode = self.dir_inode(nid)?,
            }
            hides |= inode.opaque;
        }
        Ok(Lookup::Dir { attributes: inode.attributes, hides })
    }

    fn dir_inode(&self, nid: u64) -> io::Result<DirInode> {
        let at = nid.checked_mul(SLOT as u64).ok_or_else(broken)?;
        let mut raw = [0; EXTENDED_LEN as usize];
        self.file.read_exact_at(&mut raw[..COMPACT_LEN as usize], at)?;
        let version = u16_at(&raw, 0);
        let extended = version & 1 == 1;
        let len = if extended { EXTENDED_LEN } else { COMPACT_LEN };
        self.file.read_exact_at(&mut raw[..len as usize], at)?;
        let mode = u16_at(&raw, 4);
        let layout = match version >> 1 & 7 {
            0 => Layout::Plain,
            2 => Layout::Inline,
            _ => return Err(broken()),
        };
        if mode & 0o170_000 != FileType::Directory.mode_bits() {
            return Err(broken());
        }
        let xattr_len = match u16_at(&raw, 2) {
            0 => 0,
            count => XATTR_HEADER_LEN + 4 * usize::from(count - 1),
        };
        let (uid, gid, mtime, size) = if extended {
            (u32_at(&raw, 24), u32_at(&raw, 28), u64_at(&raw, 32) as i64, u64_at(&raw, 8))
        } else {
            (u16_at(&raw, 24).into(), u16_at(&raw, 26).into(), self.build_time, u32_at(&raw, 8).into())
        };
        let xattrs = at.checked_add(len).ok_or_else(broken)?;
        Ok(DirInode {
            attributes: Owner { mode: mode & 0o7777, uid, gid, mtime },
            size,
            layout,
            first_block: u32_at(&raw, 16).into(),
            tail: xattrs.checked_add(xattr_len as u64).ok_or_else(broken)?,
            opaque: self.is_opaque(xattrs, xattr_len)?,
        })
    }

    fn is_opaque(&self, at: u64, len: usize) -> io::Result<bool> {
        // At most 256 KiB: the count has 16 bits.
        let mut body = vec![0; len];
        self.file.read_exact_at(&mut body, at)?;
        let mut rest = body.get(XATTR_HEADER_LEN..).unwrap_or_default();
        while let [name_len, index, low, high, ..] = *rest {
            let name_end = 4 + usize::from(name_len);
            let end = (name_end + usize::from(u16::from_le_bytes([low, high]))).next_multiple_of(4);
            if index == XATTR_TRUSTED && rest.get(4..name_end) == Some(OPAQUE) {
                return Ok(true);
            }
            rest = rest.get(end..).unwrap_or_default();
        }
        Ok(false)
    }

    /// Inode number and type of a name in a directory, by halving over its sorted blocks.
    fn find(&self, dir: &DirInode, name: &[u8]) -> io::Result<Option<(u64, u8)>> {
        let (mut low, mut high) = (0, dir.size.div_ceil(BLOCK_U64));
        while low < high {
            let middle = low + (high - low) / 2;
            let block = self.dir_block(dir, middle)?;
            let names = entries(&block)?;
            let (Some(first), Some(last)) = (names.first(), names.last()) else { return Err(broken()) };
            if name < first.2 {
                high = middle;
            } else if name > last.2 {
                low = middle + 1;
            } else {
                let found = names.binary_search_by(|entry| entry.2.cmp(name));
                return Ok(found.ok().map(|at| (names[at].0, names[at].1)));
            }
        }
        Ok(None)
    }

    fn dir_block(&self, dir: &DirInode, number: u64) -> io::Result<Vec<u8>> {
        let done = number.checked_mul(BLOCK_U64).ok_or_else(broken)?;
        let len = dir.size.saturating_sub(done).min(BLOCK_U64);
        let is_tail = dir.layout == Layout::Inline && len < BLOCK_U64;
        let in_blocks = || dir.first_block.checked_add(number)?.checked_mul(BLOCK_U64);
        let at = if is_tail { Some(dir.tail) } else { in_blocks() };
        // At most BLOCK bytes.
        let mut block = vec![0; len as usize];
        self.file.read_exact_at(&mut block, at.ok_or_else(broken)?)?;
        Ok(block)
    }
}

/// Inode number, type and name of each entry of a directory block.
fn entries(block: &[u8]) -> io::Result<Vec<(u64, u8, &[u8])>> {
    let slot = |n: usize| block.get(n * DIRENT_LEN..(n + 1) * DIRENT_LEN).ok_or_else(broken);
    let name_at = |slot: &[u8]| usize::from(u16_at(slot, 8));
    let count = name_at(slot(0)?) / DIRENT_LEN;
    if count > BLOCK / DIRENT_LEN {
        return Err(broken());
    }
    let mut found = Vec::with_capacity(count);
    for n in 0..count {
        let entry = slot(n)?;
        let end = if n + 1 < count { name_at(slot(n + 1)?) } else { block.len() };
        let name = block.get(name_at(entry)..end).ok_or_else(broken)?;
        // Only the last name of a block may be followed by zeros.
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        found.push((u64_at(entry, 0), entry[10], name));
    }
    Ok(found)
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a blob of ours")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{LayerLimits, convert};
    use proptest::prelude::*;

    /// A layer with these entries: a name, and its mode and owner if it is a directory.
    fn blob(entries: &[(&str, Option<(u32, u64)>)]) -> File {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, dir) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            if let Some((mode, owner)) = dir {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_uid(*owner);
                header.set_gid(*owner + 1);
                header.set_mtime(77);
            }
            builder.append_data(&mut header, name, &[][..]).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        convert(builder.into_inner().unwrap().as_slice(), &file, &LayerLimits::default()).unwrap();
        file
    }

    fn lookup(file: &File, path: &str) -> Lookup {
        DirReader::new(file.try_clone().unwrap()).unwrap().lookup(path.as_bytes()).unwrap()
    }

    #[test]
    fn directories_files_and_whiteouts_are_told_apart() {
        let file = blob(&[
            ("tmp/", Some((0o1777, 0))),
            ("home/user/", Some((0o700, 100_000))),
            ("home/user/file", None),
            ("home/.wh.gone", None),
            ("new/.wh..wh..opq", None),
            ("new/sub/file", None),
        ]);
        let dir =
            |mode, uid, gid, mtime, hides| Lookup::Dir { attributes: Owner { mode, uid, gid, mtime }, hides };
        assert_eq!(lookup(&file, "tmp"), dir(0o1777, 0, 1, 77, false));
        assert_eq!(lookup(&file, "home/user"), dir(0o700, 100_000, 100_001, 77, false));
        assert!(matches!(
            lookup(&file, "home"),
            Lookup::Dir { attributes: Owner { mode: 0o755, uid: 0, .. }, .. }
        ));
        assert!(matches!(lookup(&file, ""), Lookup::Dir { hides: false, .. }));
        assert_eq!(lookup(&file, "home/user/file"), Lookup::Other);
        assert_eq!(lookup(&file, "home/user/file/x"), Lookup::Other);
        assert_eq!(lookup(&file, "home/gone"), Lookup::Other);
        assert_eq!(lookup(&file, "home/other"), Lookup::Absent { hides: false });
        assert_eq!(lookup(&file, "etc/x/y"), Lookup::Absent { hides: false });
        assert_eq!(lookup(&file, "new/x"), Lookup::Absent { hides: true });
        assert!(matches!(lookup(&file, "new/sub"), Lookup::Dir { hides: true, .. }));
    }

    #[test]
    fn every_name_of_a_large_directory_is_found() {
        let names: Vec<String> = (0..2000).map(|n| format!("d{n:x}{}/", "y".repeat(n % 40))).collect();
        let entries: Vec<_> = names.iter().map(|name| (name.as_str(), Some((0o711, 1)))).collect();
        let file = blob(&entries);
        for name in &names {
            assert!(
                matches!(lookup(&file, name), Lookup::Dir { attributes: Owner { mode: 0o711, .. }, .. }),
                "{name}"
            );
            assert_eq!(
                lookup(&file, &format!("{}!", name.trim_end_matches('/'))),
                Lookup::Absent { hides: false }
            );
        }
    }

    proptest! {
        #[test]
        fn damaged_blobs_never_panic(at in 1024usize..8192, byte: u8) {
            use std::os::unix::fs::FileExt;
            let file = blob(&[("a/b/c/", Some((0o700, 1))), ("a/.wh..wh..opq", None), ("a/f", None)]);
            let _ = file.write_all_at(&[byte], at as u64);
            if let Ok(reader) = DirReader::new(file) {
                let _ = reader.lookup(b"a/b/c");
                let _ = reader.lookup(b"a/z");
            }
        }
    }
}
