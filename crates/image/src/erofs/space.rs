//! Where things lie in the blob: blocks are given out upwards, inodes come together in clusters.
//!
//! A cluster is a run of blocks kept in memory while it is open. What is smaller than a block never crosses
//! one (the format asks that of inline data); it goes to the first block with room in any open cluster. When
//! none has room, a larger cluster is opened at the blob's end, and the oldest is written once there are
//! eight. Clusters instead of single blocks keep inodes close together; growing ones keep small blobs small;
//! several open ones leave 4% of their room unused, one alone 25% (a layer of 6 000 files).
//!
//! Bytes that nobody writes are holes of the blob's file and read as zeros, so padding is never written.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::error::ErofsError;
use super::format::{BLOCK, BLOCK_U64, SLOT};

const FIRST_CLUSTER_BLOCKS: u64 = 4;
const LAST_CLUSTER_BLOCKS: u64 = 64;
const OPEN_CLUSTERS: usize = 8;
/// Writes that follow one another are gathered up to this size ...
const GATHER: usize = 256 << 10;
/// ... unless a single one is large enough to be worth a system call.
const LARGE_WRITE: usize = 16 << 10;

pub(crate) struct Space<'a> {
    blob: &'a File,
    next_block: u64,
    limit_blocks: u64,
    /// Oldest first.
    clusters: VecDeque<Cluster>,
    gathered: Vec<u8>,
    gathered_at: u64,
    /// Start of the directories' own blocks, and the bytes taken up to.
    directories: Option<(u64, u64)>,
}

struct Cluster {
    first_block: u64,
    bytes: Vec<u8>,
    /// Bytes taken of each block.
    used: Vec<u16>,
    /// What is this long or longer has no room.
    too_long: usize,
}

impl<'a> Space<'a> {
    /// Block 0 is the caller's.
    pub(crate) fn new(blob: &'a File, limit_bytes: u64) -> Self {
        // Addresses have 32 bits and the highest means "hole".
        let limit_blocks = (limit_bytes / BLOCK_U64).min(u64::from(u32::MAX) - 1);
        Self {
            blob,
            next_block: 1,
            limit_blocks,
            clusters: VecDeque::new(),
            gathered: Vec::new(),
            gathered_at: 0,
            directories: None,
        }
    }

    /// Takes consecutive blocks; the first one's address fits 32 bits.
    ///
    /// # Errors
    /// If the blob would become too large.
    pub(crate) fn take_blocks(&mut self, blocks: u64) -> Result<u64, ErofsError> {
        let first = self.next_block;
        self.next_block = first
            .checked_add(blocks)
            .filter(|next| *next <= self.limit_blocks)
            .ok_or(ErofsError::BlobTooLarge { limit: self.limit_blocks * BLOCK_U64 })?;
        Ok(first)
    }

    /// Takes room for an inode and what follows it, aligned to a slot; returns the position.
    ///
    /// # Errors
    /// If the blob would become too large, or a full cluster cannot be written.
    pub(crate) fn take_slots(&mut self, len: usize) -> Result<u64, ErofsError> {
        if len > BLOCK {
            return Ok(self.take_blocks(len.div_ceil(BLOCK) as u64)? * BLOCK_U64);
        }
        let len = len.next_multiple_of(SLOT);
        if let Some(position) = self.take_from_clusters(len) {
            return Ok(position);
        }
        let mut cluster = self.new_cluster()?;
        // A block of a new cluster holds anything up to a block.
        let position = cluster.first_block * BLOCK_U64;
        cluster.used[0] = len as u16;
        self.clusters.push_back(cluster);
        Ok(position)
    }

    fn take_from_clusters(&mut self, len: usize) -> Option<u64> {
        self.clusters.iter_mut().find_map(|cluster| cluster.take(len))
    }

    /// Takes room for a directory's inode at the end of the blob's making: what the last cluster has left,
    /// then blocks one after the other, so that writing in the same order needs few system calls.
    ///
    /// # Errors
    /// If the blob would become too large.
    pub(crate) fn take_directory_slots(&mut self, len: usize) -> Result<u64, ErofsError> {
        if len > BLOCK {
            return self.take_slots(len);
        }
        let len = len.next_multiple_of(SLOT);
        if let Some(position) = self.take_from_clusters(len) {
            return Ok(position);
        }
        let start = match self.directories {
            Some((_, end)) if end % BLOCK_U64 != 0 && end % BLOCK_U64 + len as u64 <= BLOCK_U64 => end,
            _ => self.take_blocks(1)? * BLOCK_U64,
        };
        let first = self.directories.map_or(start, |(first, _)| first);
        self.directories = Some((first, start + len as u64));
        Ok(start)
    }

    fn new_cluster(&mut self) -> Result<Cluster, ErofsError> {
        let last = self.clusters.back().map(|cluster| cluster.used.len() as u64 * 2);
        let blocks = last.unwrap_or(FIRST_CLUSTER_BLOCKS).min(LAST_CLUSTER_BLOCKS);
        let mut bytes = Vec::new();
        if self.clusters.len() == OPEN_CLUSTERS
            && let Some(oldest) = self.clusters.pop_front()
        {
            self.write_cluster(&oldest)?;
            bytes = oldest.bytes;
            bytes.clear();
        }
        bytes.resize(blocks as usize * BLOCK, 0);
        let first_block = self.take_blocks(blocks)?;
        Ok(Cluster { first_block, bytes, used: vec![0; blocks as usize], too_long: BLOCK + 1 })
    }

    fn write_cluster(&self, cluster: &Cluster) -> Result<(), ErofsError> {
        let blocks = cluster.used.iter().rposition(|used| *used > 0).map_or(0, |last| last + 1);
        self.blob
            .write_all_at(&cluster.bytes[..blocks * BLOCK], cluster.first_block * BLOCK_U64)
            .map_err(ErofsError::Write)
    }

    /// Writes into room from `take_slots`.
    ///
    /// # Errors
    /// If the file refuses.
    pub(crate) fn write_slots(&mut self, position: u64, bytes: &[u8]) -> Result<(), ErofsError> {
        if let Some(room) = self.clusters.iter_mut().find_map(|cluster| cluster.room(position, bytes.len())) {
            room.copy_from_slice(bytes);
            return Ok(());
        }
        if self.directories.is_some_and(|(first, _)| position >= first) {
            self.pad_gathered(position);
            return self.write_data(position, bytes);
        }
        self.blob.write_all_at(bytes, position).map_err(ErofsError::Write)
    }

    /// Writes into blocks from `take_blocks`.
    ///
    /// # Errors
    /// If the file refuses.
    pub(crate) fn write_data(&mut self, position: u64, bytes: &[u8]) -> Result<(), ErofsError> {
        let follows = self.gathered_at + self.gathered.len() as u64 == position;
        if !follows || bytes.len() >= LARGE_WRITE || self.gathered.len() + bytes.len() > GATHER {
            self.write_gathered()?;
            self.gathered_at = position;
        }
        if bytes.len() >= LARGE_WRITE {
            self.gathered_at = position + bytes.len() as u64;
            return self.blob.write_all_at(bytes, position).map_err(ErofsError::Write);
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    /// Bridges the few unused bytes between two directories' inodes, for one write instead of two.
    fn pad_gathered(&mut self, position: u64) {
        let end = self.gathered_at + self.gathered.len() as u64;
        if !self.gathered.is_empty() && position > end && position - end < BLOCK_U64 {
            self.gathered.resize((position - self.gathered_at) as usize, 0);
        }
    }

    fn write_gathered(&mut self) -> Result<(), ErofsError> {
        if !self.gathered.is_empty() {
            self.blob.write_all_at(&self.gathered, self.gathered_at).map_err(ErofsError::Write)?;
            self.gathered.clear();
        }
        Ok(())
    }

    /// Writes what is in memory and block 0, sets the file's length and returns it.
    /// `block_zero` is called with the number of blocks.
    ///
    /// # Errors
    /// If the file refuses.
    pub(crate) fn finish(
        mut self,
        block_zero: impl FnOnce(u32) -> Box<[u8; BLOCK]>,
    ) -> Result<u64, ErofsError> {
        self.write_gathered()?;
        self.clusters.iter().try_for_each(|cluster| self.write_cluster(cluster))?;
        let len = self.next_block * BLOCK_U64;
        self.blob.write_all_at(&block_zero(self.next_block as u32)[..], 0).map_err(ErofsError::Write)?;
        self.blob.set_len(len).map_err(ErofsError::Write)?;
        Ok(len)
    }

    /// Gives unused blocks of the last cluster back if nothing lies behind them.
    pub(crate) fn trim(&mut self) {
        let Some(last) = self.clusters.back_mut() else { return };
        if last.first_block + last.used.len() as u64 == self.next_block {
            let unused = last.used.iter().rev().take_while(|used| **used == 0).count();
            last.used.truncate(last.used.len() - unused);
            self.next_block -= unused as u64;
        }
    }
}

impl Cluster {
    fn take(&mut self, len: usize) -> Option<u64> {
        if len >= self.too_long {
            return None;
        }
        let Some(block) = self.used.iter().position(|used| usize::from(*used) + len <= BLOCK) else {
            // Room only shrinks, so the next one as long need not be looked for.
            self.too_long = len;
            return None;
        };
        let position = (self.first_block + block as u64) * BLOCK_U64 + u64::from(self.used[block]);
        self.used[block] += len as u16;
        Some(position)
    }

    fn room(&mut self, position: u64, len: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(position.checked_sub(self.first_block * BLOCK_U64)?).ok()?;
        self.bytes.get_mut(start..start.checked_add(len)?)
    }
}
