//! Directory blocks: 12 bytes an entry from the front, then the names, sorted by bytes.
//!
//! Each block stands for itself: the first entry's name offset tells how many entries there are. `.` and
//! `..` are sorted in with the rest, where names like `+x` come before them.

use super::format::{BLOCK, BLOCK_U64, FileType};

pub(crate) const DIRENT_LEN: usize = 12;

/// Bytes of a directory whose sorted names have these lengths.
pub(crate) fn directory_size(name_lens: impl Iterator<Item = usize>) -> u64 {
    name_lens.fold(0u64, |size, len| {
        let need = (DIRENT_LEN + len) as u64;
        let fits = size % BLOCK_U64 + need <= BLOCK_U64;
        need + if fits { size } else { size.next_multiple_of(BLOCK_U64) }
    })
}

/// Collects entries and gives out a block whenever one is full.
pub(crate) struct BlockBuilder {
    entries: Vec<(u64, FileType, u16)>,
    names: Vec<u8>,
    block: Box<[u8; BLOCK]>,
}

impl BlockBuilder {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), names: Vec::new(), block: Box::new([0; BLOCK]) }
    }

    /// Adds the next name in order; a block that it no longer fits into is returned, 4096 bytes.
    pub(crate) fn push(&mut self, nid: u64, file_type: FileType, name: &[u8]) -> Option<&[u8]> {
        let used = self.entries.len() * DIRENT_LEN + self.names.len();
        let full = used + DIRENT_LEN + name.len() > BLOCK;
        if full {
            self.compose();
        }
        self.entries.push((nid, file_type, name.len() as u16));
        self.names.extend_from_slice(name);
        full.then_some(&self.block[..])
    }

    /// The last block, cut behind its last name. The builder is empty afterwards.
    pub(crate) fn finish(&mut self) -> &[u8] {
        let used = self.compose();
        &self.block[..used]
    }

    fn compose(&mut self) -> usize {
        let mut name_at = self.entries.len() * DIRENT_LEN;
        for (slot, (nid, file_type, len)) in self.block.chunks_exact_mut(DIRENT_LEN).zip(&self.entries) {
            slot[..8].copy_from_slice(&nid.to_le_bytes());
            slot[8..10].copy_from_slice(&(name_at as u16).to_le_bytes());
            slot[10] = *file_type as u8;
            slot[11] = 0;
            name_at += usize::from(*len);
        }
        let names_at = self.entries.len() * DIRENT_LEN;
        self.block[names_at..name_at].copy_from_slice(&self.names);
        // The last name of a block that is not cut ends at a zero byte or at the block's end.
        self.block[name_at..].fill(0);
        self.entries.clear();
        self.names.clear();
        name_at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads blocks as the kernel's `erofs_fill_dentries` does.
    fn read_back(data: &[u8]) -> Vec<(u64, Vec<u8>)> {
        data.chunks(BLOCK).flat_map(read_block).collect()
    }

    fn read_block(block: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let offset = |n: usize| usize::from(u16::from_le_bytes(block[n * 12 + 8..][..2].try_into().unwrap()));
        let count = offset(0) / DIRENT_LEN;
        (0..count)
            .map(|n| {
                let rest = &block[offset(n)..];
                let name = if n + 1 < count {
                    &rest[..offset(n + 1) - offset(n)]
                } else {
                    rest.split(|byte| *byte == 0).next().unwrap()
                };
                (u64::from_le_bytes(block[n * 12..][..8].try_into().unwrap()), name.to_vec())
            })
            .collect()
    }

    proptest! {
        #[test]
        fn blocks_hold_the_names_and_the_size_is_foretold(
            lens in prop::collection::vec(prop_oneof![1usize..=255, Just(255usize), Just(1usize)], 1..400),
        ) {
            let names: Vec<Vec<u8>> = lens.iter().map(|len| vec![b'n'; *len]).collect();
            let mut builder = BlockBuilder::new();
            let mut data = Vec::new();
            for (nid, name) in names.iter().enumerate() {
                data.extend_from_slice(builder.push(nid as u64, FileType::Regular, name).unwrap_or(&[]));
            }
            data.extend_from_slice(builder.finish());
            prop_assert_eq!(data.len() as u64, directory_size(lens.into_iter()));
            let expected: Vec<_> = names.into_iter().enumerate().map(|(n, name)| (n as u64, name)).collect();
            prop_assert_eq!(read_back(&data), expected);
        }
    }
}
