//! Parses a request's header and segments. Pure: numbers in, a checked request or a status out.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::{
    HEADER_LEN, MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, MAX_ZERO_SECTORS, MAX_ZERO_SEGMENTS, SECTOR,
    SEGMENT_LEN,
};

/// Bytes of a GET_ID reply.
pub(super) const ID_LEN: usize = 20;

/// Last byte of each request (virtio 1.2, section 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoErr,
    Unsupported,
}

impl Status {
    pub(super) fn byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoErr => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        u8::try_from(value).unwrap_or(u8::MAX)
    }
}

/// What a request is checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of the disk, a multiple of [`SECTOR`].
    pub(super) capacity: u64,
    pub(super) read_only: bool,
}

/// Bytes of the disk, within its capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// A request whose range and sizes hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Read(Range),
    Write(Range),
    Flush,
    GetId,
    /// The segments follow the header.
    Discard {
        segments: usize,
    },
    /// The segments follow the header.
    WriteZeroes {
        segments: usize,
    },
}

/// One segment of a discard or write zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) range: Range,
    /// The space may be given back.
    pub(super) unmap: bool,
}

/// Which request a segment belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentKind {
    Discard,
    WriteZeroes,
}

/// Parses a header; `readable` and `writable` are the bytes of the whole chain, header and status byte included.
///
/// # Errors
/// The status that the driver gets.
pub(super) fn parse(
    header: &[u8; HEADER_LEN],
    readable: u32,
    writable: u32,
    limits: &Limits,
) -> Result<Request, Status> {
    let (kind, sector) = (le_u32(header, 0), le_u64(header, 8));
    let data_out = readable.checked_sub(HEADER_LEN as u32).ok_or(Status::IoErr)?;
    let data_in = writable.checked_sub(1).ok_or(Status::IoErr)?;
    let write_allowed = if limits.read_only { Err(Status::IoErr) } else { Ok(()) };
    match kind {
        VIRTIO_BLK_T_IN => transfer(sector, data_in, limits).map(Request::Read),
        VIRTIO_BLK_T_OUT => {
            write_allowed?;
            transfer(sector, data_out, limits).map(Request::Write)
        }
        VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
        VIRTIO_BLK_T_GET_ID if data_in as usize >= ID_LEN => Ok(Request::GetId),
        VIRTIO_BLK_T_GET_ID => Err(Status::IoErr),
        VIRTIO_BLK_T_DISCARD => {
            write_allowed?;
            segment_count(data_out, MAX_DISCARD_SEGMENTS).map(|segments| Request::Discard { segments })
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            write_allowed?;
            segment_count(data_out, MAX_ZERO_SEGMENTS).map(|segments| Request::WriteZeroes { segments })
        }
        _ => Err(Status::Unsupported),
    }
}

/// Parses one segment of a discard or write zeroes (virtio 1.2, section 5.2.6.2).
///
/// # Errors
/// The status that the driver gets.
pub(super) fn parse_segment(
    bytes: &[u8; SEGMENT_LEN],
    kind: SegmentKind,
    limits: &Limits,
) -> Result<Segment, Status> {
    let (sector, sectors, flags) = (le_u64(bytes, 0), le_u32(bytes, 8), le_u32(bytes, 12));
    let (known, most) = match kind {
        SegmentKind::Discard => (0, MAX_DISCARD_SECTORS),
        SegmentKind::WriteZeroes => (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, MAX_ZERO_SECTORS),
    };
    if flags & !known != 0 {
        return Err(Status::Unsupported);
    }
    if sectors > most {
        return Err(Status::IoErr);
    }
    let range = within(sector, u64::from(sectors) * SECTOR, limits)?;
    Ok(Segment { range, unmap: kind == SegmentKind::Discard || flags != 0 })
}

fn transfer(sector: u64, len: u32, limits: &Limits) -> Result<Range, Status> {
    if !u64::from(len).is_multiple_of(SECTOR) {
        return Err(Status::IoErr);
    }
    within(sector, len.into(), limits)
}

fn within(sector: u64, len: u64, limits: &Limits) -> Result<Range, Status> {
    let start = sector.checked_mul(SECTOR).ok_or(Status::IoErr)?;
    let end = start.checked_add(len).ok_or(Status::IoErr)?;
    if end > limits.capacity {
        return Err(Status::IoErr);
    }
    Ok(Range { start, len })
}

fn segment_count(data: u32, most: u32) -> Result<usize, Status> {
    let segment = SEGMENT_LEN as u32;
    let count = data / segment;
    if data == 0 || !data.is_multiple_of(segment) || count > most {
        return Err(Status::IoErr);
    }
    Ok(count as usize)
}

fn le_u32(bytes: &[u8; 16], at: usize) -> u32 {
    bytes.iter().skip(at).take(4).rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn le_u64(bytes: &[u8; 16], at: usize) -> u64 {
    bytes.iter().skip(at).take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
pub(super) fn header(kind: u32, sector: u64) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

#[cfg(test)]
pub(super) fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; SEGMENT_LEN] {
    let mut bytes = [0; SEGMENT_LEN];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: Limits = Limits { capacity: 16 * SECTOR, read_only: false };
    const READ_ONLY: Limits = Limits { read_only: true, ..DISK };

    #[test]
    fn transfers_within_the_capacity_parse() {
        let range = Range { start: 15 * SECTOR, len: SECTOR };
        assert_eq!(parse(&header(VIRTIO_BLK_T_IN, 15), 16, 513, &DISK), Ok(Request::Read(range)));
        assert_eq!(parse(&header(VIRTIO_BLK_T_OUT, 15), 528, 1, &DISK), Ok(Request::Write(range)));
    }

    #[test]
    fn v11_s20_sectors_past_the_capacity_or_that_overflow_are_io_errors() {
        for sector in [15, 16, 17, u64::MAX, u64::MAX / SECTOR, u64::MAX / SECTOR + 1] {
            assert_eq!(parse(&header(VIRTIO_BLK_T_IN, sector), 16, 1025, &DISK), Err(Status::IoErr));
            assert_eq!(parse(&header(VIRTIO_BLK_T_OUT, sector), 1040, 1, &DISK), Err(Status::IoErr));
            for kind in [SegmentKind::Discard, SegmentKind::WriteZeroes] {
                assert_eq!(parse_segment(&segment(sector, 2, 0), kind, &DISK), Err(Status::IoErr));
            }
        }
    }

    #[test]
    fn v17_unknown_types_are_unsupported() {
        for kind in [2, 3, 5, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
            assert_eq!(parse(&header(kind, 0), 16, 513, &DISK), Err(Status::Unsupported), "{kind}");
        }
    }

    #[test]
    fn s20_whatever_writes_fails_on_a_read_only_disk() {
        for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(parse(&header(kind, 0), 16 + 512, 1, &READ_ONLY), Err(Status::IoErr));
        }
        assert_eq!(parse(&header(VIRTIO_BLK_T_FLUSH, 0), 16, 1, &READ_ONLY), Ok(Request::Flush));
    }

    #[test]
    fn s20_lengths_must_fit_the_request() {
        assert_eq!(parse(&header(VIRTIO_BLK_T_IN, 0), 16, 500, &DISK), Err(Status::IoErr));
        assert_eq!(parse(&header(VIRTIO_BLK_T_IN, 0), 16, 0, &DISK), Err(Status::IoErr));
        assert_eq!(parse(&header(VIRTIO_BLK_T_OUT, 0), 100, 1, &DISK), Err(Status::IoErr));
        assert_eq!(parse(&header(VIRTIO_BLK_T_GET_ID, 0), 16, 20, &DISK), Err(Status::IoErr));
        assert_eq!(parse(&header(VIRTIO_BLK_T_GET_ID, 0), 16, 21, &DISK), Ok(Request::GetId));
        for data in [0, 15, 17, 33 * 16] {
            assert_eq!(parse(&header(VIRTIO_BLK_T_DISCARD, 0), 16 + data, 1, &DISK), Err(Status::IoErr));
        }
    }

    #[test]
    fn s20_unknown_segment_flags_are_unsupported() {
        assert_eq!(
            parse_segment(&segment(0, 1, 1), SegmentKind::Discard, &DISK),
            Err(Status::Unsupported),
            "unmap has no meaning for a discard"
        );
        assert_eq!(
            parse_segment(&segment(0, 1, 2), SegmentKind::WriteZeroes, &DISK),
            Err(Status::Unsupported)
        );
        assert!(parse_segment(&segment(0, 1, 1), SegmentKind::WriteZeroes, &DISK).unwrap().unmap);
    }

    proptest! {
        #[test]
        fn any_header_parses_to_a_range_within_the_disk_or_fails(
            bytes: [u8; HEADER_LEN], kind in 0u32..16, sector in 0u64..20, readable: u32, writable: u32,
            sectors in 0u32..20,
        ) {
            for bytes in [bytes, header(kind, sector)] {
                for (readable, writable) in [(readable, writable), (16 + 512 * sectors, 1 + 512 * sectors)] {
                    if let Ok(Request::Read(range) | Request::Write(range)) =
                        parse(&bytes, readable, writable, &DISK)
                    {
                        prop_assert!(range.start + range.len <= DISK.capacity);
                        prop_assert_eq!(range.len % SECTOR, 0);
                    }
                }
            }
        }

        #[test]
        fn any_segment_parses_to_a_range_within_the_disk_or_fails(
            bytes: [u8; SEGMENT_LEN], sector in 0u64..20, sectors in 0u32..20, flags in 0u32..4,
        ) {
            for bytes in [bytes, segment(sector, sectors, flags)] {
                for kind in [SegmentKind::Discard, SegmentKind::WriteZeroes] {
                    if let Ok(segment) = parse_segment(&bytes, kind, &DISK) {
                        prop_assert!(segment.range.start + segment.range.len <= DISK.capacity);
                    }
                }
            }
        }
    }
}
