//! Files with holes: which chunk size costs least, and where each chunk lies.
//!
//! A chunked file has a table with one 4-byte address for each chunk of `4096 << bits` bytes. Small chunks
//! make long tables, large chunks carry zeros around their data. Chunks with data follow one another in the
//! blob, in the order of the file.

use super::format::{BLOCK_BITS, BLOCK_U64, NULL_ADDR};

/// A range of a file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// A table is at most 16 MiB.
const CHUNKS_MAX: u64 = 1 << 22;
/// `EROFS_CHUNK_FORMAT_BLKBITS_MASK`.
const BITS_MAX: u32 = 31;

/// How a file is cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkPlan {
    /// Chunk size as a shift of the block size.
    pub(crate) bits: u32,
    /// Entries of the table.
    pub(crate) chunks: u64,
    /// Blocks that hold data.
    pub(crate) data_blocks: u64,
}

impl ChunkPlan {
    /// The cheapest plan, or `None` if consecutive blocks are as good.
    ///
    /// Segments are in order, apart from each other and within `size`, which is at most `i64::MAX`.
    pub(crate) fn cheapest(size: u64, segments: &[Segment]) -> Option<Self> {
        let flat_cost = size.div_ceil(BLOCK_U64).saturating_mul(BLOCK_U64);
        (0..=BITS_MAX)
            .filter_map(|bits| Self::with_bits(size, segments, bits))
            .map(|plan| (plan.table_len() + plan.data_blocks.saturating_mul(BLOCK_U64), plan))
            .min_by_key(|(cost, _)| *cost)
            .filter(|(cost, _)| *cost < flat_cost)
            .map(|(_, plan)| plan)
    }

    fn with_bits(size: u64, segments: &[Segment], bits: u32) -> Option<Self> {
        let shift = bits + BLOCK_BITS;
        let chunks = size.div_ceil(1 << shift);
        if chunks > CHUNKS_MAX {
            return None;
        }
        let data_chunks: u64 = runs(segments, shift).map(|run| run.end - run.start).sum();
        let ends_in_data = runs(segments, shift).last().is_some_and(|run| run.end == chunks);
        // Nothing beyond the end of the file is stored.
        let cut = if ends_in_data { ((chunks << shift) - size) >> BLOCK_BITS } else { 0 };
        Some(Self { bits, chunks, data_blocks: (data_chunks << bits) - cut })
    }

    /// Bytes of the table.
    pub(crate) fn table_len(&self) -> u64 {
        self.chunks * 4
    }

    pub(crate) fn shift(&self) -> u32 {
        self.bits + BLOCK_BITS
    }

    /// The table, with the first data chunk at block `first`.
    pub(crate) fn table(&self, segments: &[Segment], first: u64) -> Vec<u8> {
        let mut table = Vec::with_capacity(self.chunks as usize * 4);
        let mut next = first;
        for run in runs(segments, self.shift()) {
            table.resize(run.start as usize * 4, NULL_ADDR as u8);
            for _ in run {
                // The allocator of blocks keeps addresses within 32 bits.
                table.extend_from_slice(&(next as u32).to_le_bytes());
                next += 1 << self.bits;
            }
        }
        table.resize(self.chunks as usize * 4, NULL_ADDR as u8);
        table
    }
}

/// Runs of chunks that have data, apart from each other.
fn runs(segments: &[Segment], shift: u32) -> impl Iterator<Item = std::ops::Range<u64>> {
    let mut taken = 0;
    segments.iter().filter(|segment| segment.len > 0).map(move |segment| {
        let start = (segment.offset >> shift).max(taken);
        let end = ((segment.offset + segment.len - 1) >> shift) + 1;
        taken = end.max(start);
        start..taken
    })
}

/// Follows the data of a chunked file through its chunks.
#[derive(Clone, Debug)]
pub(crate) struct ChunkCursor {
    base: u64,
    shift: u32,
    /// Chunk written last, and its place among the chunks with data.
    current: Option<(u64, u64)>,
}

impl ChunkCursor {
    pub(crate) fn new(plan: &ChunkPlan, first_block: u64) -> Self {
        Self { base: first_block * BLOCK_U64, shift: plan.shift(), current: None }
    }

    /// Blob position of `offset`, where `len > 0` bytes of one segment are to go. Calls must ascend.
    pub(crate) fn locate(&mut self, offset: u64, len: u64) -> u64 {
        let chunk = offset >> self.shift;
        let rank = match self.current {
            None => 0,
            Some((last, rank)) if last == chunk => rank,
            Some((_, rank)) => rank + 1,
        };
        // Within a segment chunks follow one another, in the file and in the blob.
        let last = (offset + len - 1) >> self.shift;
        self.current = Some((last, rank + (last - chunk)));
        self.base + (rank << self.shift) + (offset & ((1 << self.shift) - 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(offset: u64, len: u64) -> Segment {
        Segment { offset, len }
    }

    #[test]
    fn a_tebibyte_of_holes_costs_a_few_mebibytes() {
        let segments = [segment(0, 4096), segment((1 << 40) - 100, 100)];
        let plan = ChunkPlan::cheapest(1 << 40, &segments).unwrap();
        assert!(plan.chunks * 4 + plan.data_blocks * 4096 < 8 << 20, "{plan:?}");
    }

    #[test]
    fn a_file_without_holes_is_not_chunked() {
        assert_eq!(ChunkPlan::cheapest(1 << 20, &[segment(0, 1 << 20)]), None);
        assert_eq!(ChunkPlan::cheapest(0, &[]), None);
    }

    #[test]
    fn the_largest_file_has_a_plan() {
        let size = i64::MAX as u64;
        let plan = ChunkPlan::cheapest(size, &[segment(size - 1, 1)]).unwrap();
        assert!(plan.chunks <= CHUNKS_MAX);
    }

    /// Segments from gaps and lengths, so that they are in order and apart.
    fn segments() -> impl Strategy<Value = Vec<Segment>> {
        prop::collection::vec((0u64..200_000, 0u64..50_000), 0..20).prop_map(|pairs| {
            let mut at = 0;
            pairs
                .into_iter()
                .map(|(gap, len)| {
                    let offset = at + gap;
                    at = offset + len;
                    Segment { offset, len }
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn table_and_cursor_agree_on_every_byte(segments in segments(), rest in 0u64..100_000, bits in 0u32..6) {
            let size = segments.last().map_or(0, |last| last.offset + last.len) + rest;
            let plan = ChunkPlan::with_bits(size, &segments, bits).unwrap();
            let table = plan.table(&segments, 1000);
            prop_assert_eq!(table.len() as u64, plan.chunks * 4);
            let mut cursor = ChunkCursor::new(&plan, 1000);
            for segment in segments.iter().filter(|segment| segment.len > 0) {
                let start = cursor.locate(segment.offset, segment.len);
                for at in [0, segment.len / 2, segment.len - 1] {
                    let chunk = ((segment.offset + at) >> plan.shift()) as usize;
                    let block = u32::from_le_bytes(table[chunk * 4..][..4].try_into().unwrap());
                    prop_assert_ne!(block, NULL_ADDR);
                    let within = (segment.offset + at) & ((1 << plan.shift()) - 1);
                    let position = u64::from(block) * 4096 + within;
                    prop_assert_eq!(position, start + at);
                    prop_assert!(position < (1000 + plan.data_blocks) * 4096);
                }
            }
        }
    }
}
