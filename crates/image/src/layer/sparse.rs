//! Maps of GNU sparse files: where the stored bytes belong in the file.
//!
//! Four encodings: in the header and records behind it (old GNU), in extended header records (0.0, 0.1), or
//! as text before the data (1.0). All come down to pairs of offset and length. Pure.

use super::header::number;
use super::pax::decimal;
use crate::erofs::Segment;

/// Pairs in one map: 4 MiB of memory.
const SEGMENTS_MAX: usize = 1 << 18;
/// Offset and length in the old GNU encoding.
const GNU_PAIR: usize = 24;

/// What is wrong with a map.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SparseError {
    /// A number is missing or malformed.
    #[error("an offset or length is not a number")]
    Number,
    /// There are more ranges than anything needs.
    #[error("it has more than {SEGMENTS_MAX} ranges")]
    TooManySegments,
    /// Ranges overlap, go backwards or go beyond the end of the file.
    #[error("range {0} is out of order or beyond the end of the file")]
    Order(usize),
    /// The ranges have another number of bytes than the archive.
    #[error("its ranges have {mapped} bytes, the archive has {stored}")]
    Length {
        /// Bytes of all ranges.
        mapped: u64,
        /// Bytes in the archive.
        stored: u64,
    },
    /// The size of the file is not stated.
    #[error("the size of the file is missing")]
    NoSize,
}

/// Offsets and lengths in turn, as collected from any encoding.
#[derive(Debug, Default)]
pub(super) struct MapNumbers(Vec<u64>);

impl MapNumbers {
    /// # Errors
    /// If there are too many.
    pub(super) fn from_pax(numbers: Vec<u64>) -> Result<Self, SparseError> {
        if numbers.len() > 2 * SEGMENTS_MAX {
            return Err(SparseError::TooManySegments);
        }
        Ok(Self(numbers))
    }

    /// Takes pairs in the old GNU encoding, up to the first empty one.
    ///
    /// # Errors
    /// If a number is malformed or there are too many.
    pub(super) fn push_gnu(&mut self, pairs: &[u8]) -> Result<(), SparseError> {
        for pair in pairs.chunks_exact(GNU_PAIR) {
            if pair[0] == 0 || pair[12] == 0 {
                break;
            }
            for field in [&pair[..12], &pair[12..]] {
                let value = number(field).and_then(|n| u64::try_from(n).ok()).ok_or(SparseError::Number)?;
                self.push(value)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, number: u64) -> Result<(), SparseError> {
        if self.0.len() >= 2 * SEGMENTS_MAX {
            return Err(SparseError::TooManySegments);
        }
        self.0.push(number);
        Ok(())
    }

    /// Checks the map of a file of `size` bytes that are `stored` bytes in the archive.
    ///
    /// # Errors
    /// If the ranges are not in order, not apart, beyond the end, or of another length together.
    pub(super) fn check(&self, size: u64, stored: u64) -> Result<Vec<Segment>, SparseError> {
        if !self.0.len().is_multiple_of(2) {
            return Err(SparseError::Number);
        }
        let mut segments = Vec::with_capacity(self.0.len() / 2);
        let (mut end, mut mapped) = (0, 0);
        for (at, pair) in self.0.chunks_exact(2).enumerate() {
            let (offset, len) = (pair[0], pair[1]);
            let next = offset.checked_add(len).filter(|next| offset >= end && *next <= size);
            end = next.ok_or(SparseError::Order(at))?;
            // No overflow: the ranges are apart and within `size`.
            mapped += len;
            if len > 0 {
                segments.push(Segment { offset, len });
            }
        }
        if mapped != stored {
            return Err(SparseError::Length { mapped, stored });
        }
        Ok(segments)
    }
}

/// Reads the text map of version 1.0: a count, then offsets and lengths, one number a line.
#[derive(Debug, Default)]
pub(super) struct TextMap {
    numbers: MapNumbers,
    count: Option<usize>,
    line: Vec<u8>,
}

impl TextMap {
    /// Takes the next bytes; true once the map is complete and the rest of `bytes` is padding.
    ///
    /// # Errors
    /// If a line is not a number or there are too many.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<bool, SparseError> {
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() >= 20 {
                    return Err(SparseError::Number);
                }
                self.line.push(*byte);
                continue;
            }
            let value = decimal(&self.line).ok_or(SparseError::Number)?;
            self.line.clear();
            match self.count {
                None => {
                    let count = usize::try_from(value).ok().filter(|count| *count <= SEGMENTS_MAX);
                    self.count = Some(count.ok_or(SparseError::TooManySegments)? * 2);
                }
                Some(_) => self.numbers.push(value)?,
            }
            if self.count == Some(self.numbers.0.len()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn into_numbers(self) -> MapNumbers {
        self.numbers
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(numbers: &[u64]) -> MapNumbers {
        MapNumbers::from_pax(numbers.to_vec()).unwrap()
    }

    #[test]
    fn a_good_map_becomes_segments_without_the_empty_ones() {
        let segments = map(&[0, 10, 20, 5, 100, 0]).check(100, 15).unwrap();
        assert_eq!(segments, [Segment { offset: 0, len: 10 }, Segment { offset: 20, len: 5 }]);
    }

    #[test]
    fn bad_maps_are_refused() {
        assert_eq!(map(&[0, 10, 5, 5]).check(100, 15), Err(SparseError::Order(1)));
        assert_eq!(map(&[90, 11]).check(100, 11), Err(SparseError::Order(0)));
        assert_eq!(map(&[u64::MAX, 2]).check(100, 2), Err(SparseError::Order(0)));
        assert_eq!(map(&[0, 10]).check(100, 11), Err(SparseError::Length { mapped: 10, stored: 11 }));
        assert_eq!(map(&[0]).check(100, 0), Err(SparseError::Number));
    }

    #[test]
    fn a_text_map_ends_where_its_count_says() {
        let mut text = TextMap::default();
        assert_eq!(text.push(b"2\n0\n51"), Ok(false));
        assert_eq!(text.push(b"2\n1024\n1\n\0\0garbage"), Ok(true));
        assert_eq!(text.into_numbers().0, [0, 512, 1024, 1]);
        assert_eq!(TextMap::default().push(b"0\n"), Ok(true));
        assert_eq!(TextMap::default().push(b"999999999\n"), Err(SparseError::TooManySegments));
        assert_eq!(TextMap::default().push(&[b'1'; 30]), Err(SparseError::Number));
    }

    proptest! {
        #[test]
        fn any_numbers_are_checked_without_panic(
            numbers in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..100], 0..20),
            size in any::<u64>(), stored in any::<u64>(), text in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Ok(segments) = map(&numbers).check(size, stored) {
                prop_assert!(segments.windows(2).all(|two| two[0].offset + two[0].len <= two[1].offset));
            }
            let _ = TextMap::default().push(&text);
            let _ = MapNumbers::default().push_gnu(&text);
        }
    }
}
