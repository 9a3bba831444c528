//! The on-disk structures of EROFS, as in the kernel's `fs/erofs/erofs_fs.h`, and nothing else.

/// Bytes of a block. 4096 is what every kernel mounts, on every page size from 4 KiB up.
pub(crate) const BLOCK: usize = 4096;
pub(crate) const BLOCK_BITS: u32 = 12;
pub(crate) const BLOCK_U64: u64 = BLOCK as u64;
/// Inode numbers count 32-byte slots from the start of the metadata area; ours begins at block 0.
pub(crate) const SLOT: usize = 32;
pub(crate) const SUPERBLOCK_POS: usize = 1024;
const SUPERBLOCK_LEN: usize = 128;
/// The root's inode number is a 16-bit field, so the root lies right behind the superblock.
pub(crate) const ROOT_POS: usize = SUPERBLOCK_POS + SUPERBLOCK_LEN;
/// Longest name in a directory (`EROFS_NAME_LEN`).
pub(crate) const NAME_MAX: usize = 255;
/// A chunk without data (`EROFS_NULL_ADDR`).
pub(crate) const NULL_ADDR: u32 = u32::MAX;

const MAGIC: u32 = 0xe0f5_e1e2;
const FEATURE_COMPAT_SB_CHKSUM: u32 = 0x1;
const FEATURE_COMPAT_MTIME: u32 = 0x2;
const FEATURE_INCOMPAT_CHUNKED_FILE: u32 = 0x4;

const COMPACT_LEN: usize = 32;
const EXTENDED_LEN: usize = 64;
/// Where the link counts stand in the two forms.
const COMPACT_NLINK: u64 = 6;
const EXTENDED_NLINK: u64 = 44;

/// Types of directory entries (`FT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FileType {
    Regular = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Symlink = 7,
}

impl FileType {
    /// The `S_IFMT` bits.
    pub(crate) fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice => 0o060_000,
            Self::Regular => 0o100_000,
            Self::Symlink => 0o120_000,
        }
    }

    pub(crate) fn from_bits(bits: u8) -> Option<Self> {
        [Self::Regular, Self::Directory, Self::CharDevice, Self::BlockDevice, Self::Fifo, Self::Symlink]
            .into_iter()
            .find(|kind| *kind as u8 == bits)
    }
}

/// Where the bytes of a file are (`EROFS_INODE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Consecutive blocks.
    Plain = 0,
    /// Consecutive blocks, and the rest behind the inode.
    Inline = 2,
    /// A table of chunks behind the inode.
    Chunked = 4,
}

/// A time as EROFS stores it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timestamp {
    pub(crate) secs: i64,
    pub(crate) nanos: u32,
}

/// An inode, before one of the two forms is chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inode {
    pub(crate) file_type: FileType,
    /// Permission bits, `07777`.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) size: u64,
    pub(crate) nlink: u32,
    pub(crate) layout: Layout,
    /// `i_u`: first block, device number or chunk format.
    pub(crate) location: u32,
    pub(crate) xattr_len: usize,
}

/// An inode in the blob: where it is and what has to be known to change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InodeRef {
    /// Inode number: the position in slots.
    pub(crate) nid: u64,
    pub(crate) form: Form,
}

/// The two sizes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// 32 bytes: no time of its own, 16-bit owner and link count, 32-bit size.
    Compact,
    /// 64 bytes.
    Extended,
}

impl Form {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::Compact => COMPACT_LEN,
            Self::Extended => EXTENDED_LEN,
        }
    }
}

impl Inode {
    /// The smaller form if all fields fit. A compact inode has the time of the file system.
    pub(crate) fn form(&self, build_time: Timestamp) -> Form {
        let narrow = self.mtime == build_time
            && u16::try_from(self.uid).is_ok()
            && u16::try_from(self.gid).is_ok()
            && u16::try_from(self.nlink).is_ok()
            && u32::try_from(self.size).is_ok();
        if narrow { Form::Compact } else { Form::Extended }
    }

    /// Writes the inode to the start of `out`, which must hold `form.len()` bytes.
    pub(crate) fn encode(&self, form: Form, nid: u64, out: &mut [u8]) {
        let version = u16::from(form == Form::Extended);
        put(out, 0, &(version | (self.layout as u16) << 1).to_le_bytes());
        put(out, 2, &xattr_icount(self.xattr_len).to_le_bytes());
        put(out, 4, &(self.file_type.mode_bits() | (self.mode & 0o7777)).to_le_bytes());
        put(out, 16, &self.location.to_le_bytes());
        // Only 32-bit stat uses i_ino; the low half of the inode number serves.
        put(out, 20, &(nid as u32).to_le_bytes());
        match form {
            Form::Compact => {
                put(out, COMPACT_NLINK as usize, &(self.nlink as u16).to_le_bytes());
                put(out, 8, &(self.size as u32).to_le_bytes());
                put(out, 24, &(self.uid as u16).to_le_bytes());
                put(out, 26, &(self.gid as u16).to_le_bytes());
            }
            Form::Extended => {
                put(out, 8, &self.size.to_le_bytes());
                put(out, 24, &self.uid.to_le_bytes());
                put(out, 28, &self.gid.to_le_bytes());
                put(out, 32, &self.mtime.secs.to_le_bytes());
                put(out, 40, &self.mtime.nanos.to_le_bytes());
                put(out, EXTENDED_NLINK as usize, &self.nlink.to_le_bytes());
            }
        }
    }
}

/// Bytes of the blob to change so that an inode has another link count.
pub(crate) struct LinkPatch {
    pub(crate) position: u64,
    bytes: [u8; 4],
    len: usize,
}

impl LinkPatch {
    /// `None` if the inode's form cannot hold the count.
    pub(crate) fn new(inode: InodeRef, links: u64) -> Option<Self> {
        let start = inode.nid * SLOT as u64;
        let bytes = u32::try_from(links).ok()?.to_le_bytes();
        match inode.form {
            Form::Compact if links > u64::from(u16::MAX) => None,
            Form::Compact => Some(Self { position: start + COMPACT_NLINK, bytes, len: 2 }),
            Form::Extended => Some(Self { position: start + EXTENDED_NLINK, bytes, len: 4 }),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// `i_xattr_icount`: 4-byte units, the 12-byte header counting as one.
fn xattr_icount(len: usize) -> u16 {
    if len == 0 { 0 } else { ((len - 12) / 4 + 1) as u16 }
}

/// `new_encode_dev`: 12 bits of major and 20 of minor number, `None` if they do not fit.
pub(crate) fn encode_device(major: u32, minor: u32) -> Option<u32> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return None;
    }
    Some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// What the superblock says of the whole file system.
pub(crate) struct Superblock {
    pub(crate) inodes: u64,
    pub(crate) build_time: Timestamp,
    pub(crate) blocks: u32,
    pub(crate) has_chunks: bool,
}

impl Superblock {
    /// Writes the superblock and its checksum into block 0, whose other bytes must be final: the checksum
    /// covers them.
    pub(crate) fn seal(&self, block: &mut [u8; BLOCK]) {
        let sb = &mut block[SUPERBLOCK_POS..];
        put(sb, 0, &MAGIC.to_le_bytes());
        put(sb, 8, &(FEATURE_COMPAT_SB_CHKSUM | FEATURE_COMPAT_MTIME).to_le_bytes());
        sb[12] = BLOCK_BITS as u8;
        put(sb, 14, &((ROOT_POS / SLOT) as u16).to_le_bytes());
        put(sb, 16, &self.inodes.to_le_bytes());
        put(sb, 24, &self.build_time.secs.to_le_bytes());
        put(sb, 32, &self.build_time.nanos.to_le_bytes());
        put(sb, 36, &self.blocks.to_le_bytes());
        // meta_blkaddr, xattr_blkaddr, uuid and volume_name stay 0.
        let incompat = if self.has_chunks { FEATURE_INCOMPAT_CHUNKED_FILE } else { 0 };
        put(sb, 80, &incompat.to_le_bytes());
        let checksum = crc32c(sb);
        put(sb, 4, &checksum.to_le_bytes());
    }
}

/// CRC-32C without the final inversion, as the kernel computes it. 3 KiB once a blob: no table needed.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_check_string_is_the_published_value() {
        assert_eq!(crc32c(b"123456789") ^ u32::MAX, 0xe306_9283);
    }

    #[test]
    fn devices_are_encoded_as_the_kernel_decodes_them() {
        let encoded = encode_device(259, 70_000).unwrap();
        assert_eq!((encoded & 0xfff00) >> 8, 259);
        assert_eq!((encoded & 0xff) | ((encoded >> 12) & 0xfff00), 70_000);
        assert_eq!(encode_device(4096, 0), None);
        assert_eq!(encode_device(0, 1 << 20), None);
    }

    #[test]
    fn an_inode_is_compact_only_if_every_field_fits() {
        let time = Timestamp { secs: 7, nanos: 9 };
        let inode = Inode {
            file_type: FileType::Regular,
            mode: 0o644,
            uid: 65_535,
            gid: 0,
            mtime: time,
            size: u64::from(u32::MAX),
            nlink: 1,
            layout: Layout::Plain,
            location: 0,
            xattr_len: 0,
        };
        assert_eq!(inode.form(time), Form::Compact);
        assert_eq!(Inode { uid: 65_536, ..inode }.form(time), Form::Extended);
        assert_eq!(Inode { gid: 65_536, ..inode }.form(time), Form::Extended);
        assert_eq!(Inode { nlink: 65_536, ..inode }.form(time), Form::Extended);
        assert_eq!(Inode { size: 1 << 32, ..inode }.form(time), Form::Extended);
        assert_eq!(inode.form(Timestamp::default()), Form::Extended);
    }
}
