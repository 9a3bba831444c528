//! The header before each frame (virtio 1.2, section 5.1.6). Pure: bytes in, checked bytes out.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_HDR_F_NEEDS_CSUM,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::{HEADER_LEN, MAX_FRAME};

/// Destination, source and type.
const MIN_FRAME: usize = 14;

/// A frame that is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Shorter than a link header, or longer than any packet.
    Length,
    /// The checksum is not negotiated or does not lie within the frame.
    Checksum,
    /// Segmentation is unknown, not negotiated, without checksum, or does not fit the frame.
    Segmentation,
}

/// Offset of num_buffers.
pub(super) const NUM_BUFFERS_AT: usize = 10;

/// Checks a header of the guest against its frame's length, and gives back what the tap is told.
///
/// # Errors
/// [`Refusal`]: the frame is dropped.
pub(super) fn check(
    bytes: &[u8; HEADER_LEN],
    frame_len: usize,
    features: u64,
) -> Result<[u8; HEADER_LEN], Refusal> {
    let [flags, gso_type, l0, l1, s0, s1, c0, c1, o0, o1, ..] = *bytes;
    let (hdr_len, gso_size) = (u16::from_le_bytes([l0, l1]), u16::from_le_bytes([s0, s1]));
    let (csum_start, csum_offset) = (u16::from_le_bytes([c0, c1]), u16::from_le_bytes([o0, o1]));
    let has = |feature: u32| features & (1 << feature) != 0;
    if !(MIN_FRAME..=MAX_FRAME).contains(&frame_len) {
        return Err(Refusal::Length);
    }
    let csum = u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
    let csum_end = usize::from(csum_start) + usize::from(csum_offset) + 2;
    if csum && (!has(VIRTIO_NET_F_CSUM) || csum_end > frame_len) {
        return Err(Refusal::Checksum);
    }
    let segmented = match u32::from(gso_type) {
        VIRTIO_NET_HDR_GSO_NONE => false,
        VIRTIO_NET_HDR_GSO_TCPV4 if has(VIRTIO_NET_F_HOST_TSO4) => true,
        VIRTIO_NET_HDR_GSO_TCPV6 if has(VIRTIO_NET_F_HOST_TSO6) => true,
        _ => return Err(Refusal::Segmentation),
    };
    if segmented && (!csum || gso_size == 0 || usize::from(hdr_len) > frame_len) {
        return Err(Refusal::Segmentation);
    }
    let mut out = [0; HEADER_LEN];
    if csum {
        out[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
        out[6..10].copy_from_slice(&[c0, c1, o0, o1]);
    }
    if segmented {
        out[1] = gso_type;
        out[2..6].copy_from_slice(&[l0, l1, s0, s1]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6;

    fn header(
        flags: u8,
        gso_type: u8,
        hdr_len: u16,
        gso_size: u16,
        start: u16,
        offset: u16,
    ) -> [u8; HEADER_LEN] {
        let mut out = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7];
        for (at, value) in [(2, hdr_len), (4, gso_size), (6, start), (8, offset)] {
            out[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        out
    }

    #[test]
    fn plain_frame_gets_an_empty_header() {
        assert_eq!(check(&header(0, 0, 9, 9, 9, 9), 60, ALL), Ok([0; HEADER_LEN]));
    }

    #[test]
    fn segmented_frame_keeps_its_numbers() {
        let sent = header(1, 1, 54, 1448, 34, 16);
        let mut expected = sent;
        expected[NUM_BUFFERS_AT..].fill(0);
        assert_eq!(check(&sent, 20_000, ALL), Ok(expected));
    }

    #[test]
    fn s22_lengths_out_of_range_are_refused() {
        for len in [0, 13, MAX_FRAME + 1, usize::MAX] {
            assert_eq!(check(&[0; HEADER_LEN], len, ALL), Err(Refusal::Length));
        }
    }

    #[test]
    fn s22_checksum_outside_of_the_frame_is_refused() {
        assert!(check(&header(1, 0, 0, 0, 34, 16), 52, ALL).is_ok());
        for (start, offset) in [(34, 17), (51, 0), (u16::MAX, u16::MAX), (0, 51)] {
            assert_eq!(check(&header(1, 0, 0, 0, start, offset), 52, ALL), Err(Refusal::Checksum));
        }
    }

    #[test]
    fn s22_segmentation_that_makes_no_sense_is_refused() {
        let refused = Err(Refusal::Segmentation);
        assert_eq!(check(&header(1, 1, 54, 0, 34, 16), 2000, ALL), refused);
        assert_eq!(check(&header(0, 1, 54, 1448, 34, 16), 2000, ALL), refused);
        assert_eq!(check(&header(1, 1, 2001, 1448, 34, 16), 2000, ALL), refused);
        for gso_type in [2, 3, 5, 0x81, 0xff] {
            assert_eq!(check(&header(1, gso_type, 54, 1448, 34, 16), 2000, ALL), refused);
        }
    }

    #[test]
    fn s22_offloads_that_were_not_negotiated_are_refused() {
        assert_eq!(check(&header(1, 0, 0, 0, 34, 16), 60, 0), Err(Refusal::Checksum));
        let only_csum = 1 << VIRTIO_NET_F_CSUM;
        assert_eq!(check(&header(1, 1, 54, 1448, 34, 16), 2000, only_csum), Err(Refusal::Segmentation));
    }

    proptest! {
        #[test]
        fn any_header_is_refused_or_stays_within_its_frame(bytes: [u8; HEADER_LEN], len in 0usize..70_000) {
            for flags in [bytes[0], 0, 1] {
                let mut bytes = bytes;
                bytes[0] = flags;
                bytes[1] %= 6;
                if let Ok(out) = check(&bytes, len, ALL) {
                    prop_assert!((MIN_FRAME..=MAX_FRAME).contains(&len));
                    let at = |n: usize| usize::from(u16::from_le_bytes([out[n], out[n + 1]]));
                    prop_assert!(out[0] == 0 || at(6) + at(8) + 2 <= len);
                    prop_assert!(at(2) <= len);
                }
            }
        }
    }
}
