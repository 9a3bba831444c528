//! Parses page numbers into ranges of guest memory. Pure.

use std::ops::Range;

use super::PAGE;

/// The ranges of guest addresses that little-endian page numbers name, sorted, each as long as it can be.
pub(super) fn ranges(bytes: &[u8]) -> Vec<Range<u64>> {
    let (numbers, _) = bytes.as_chunks::<4>();
    let mut pages: Vec<u32> = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    pages.sort_unstable();
    pages.dedup();
    let mut out: Vec<Range<u64>> = Vec::new();
    for page in pages {
        // 2^32 pages of 2^12 bytes: no overflow.
        let start = u64::from(page) * PAGE;
        match out.last_mut() {
            Some(last) if last.end == start => last.end += PAGE,
            _ => out.push(start..start + PAGE),
        }
    }
    out
}

/// The whole pages within `len` bytes at `addr`.
pub(super) fn whole_pages(addr: u64, len: u32) -> Option<Range<u64>> {
    let start = addr.checked_next_multiple_of(PAGE)?;
    let end = addr.checked_add(len.into())? / PAGE * PAGE;
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_become_one_range() {
        let bytes: Vec<u8> = [7u32, 5, 6, 6, 9].iter().flat_map(|page| page.to_le_bytes()).collect();
        assert_eq!(ranges(&bytes), [5 * PAGE..8 * PAGE, 9 * PAGE..10 * PAGE]);
    }

    #[test]
    fn partial_pages_do_not_count() {
        assert_eq!(whole_pages(1, 4096), None);
        assert_eq!(whole_pages(4095, 4098), Some(4096..8192));
        assert_eq!(whole_pages(u64::MAX - 10, 4096), None);
    }

    proptest! {
        #[test]
        fn v13_ranges_name_exactly_the_pages(pages in prop::collection::vec(prop_oneof![0u32..50, any::<u32>()], 0..60)) {
            let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
            let got = ranges(&bytes);
            for pair in got.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
            let named: u64 = got.iter().map(|range| (range.end - range.start) / PAGE).sum();
            let unique: std::collections::BTreeSet<_> = pages.iter().collect();
            prop_assert_eq!(named, unique.len() as u64);
            for page in pages {
                prop_assert!(got.iter().any(|range| range.contains(&(u64::from(page) * PAGE))));
            }
        }

        #[test]
        fn whole_pages_lie_within(addr: u64, len: u32) {
            if let Some(range) = whole_pages(addr, len) {
                prop_assert!(range.start >= addr && range.end <= addr + u64::from(len));
                prop_assert_eq!((range.start % PAGE, range.end % PAGE), (0, 0));
            }
        }
    }
}
