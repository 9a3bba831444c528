//! The packet header (virtio 1.2, section 5.10.6). Pure: bytes in, numbers out, and back.

use super::{GUEST_CID, HOST_CID};

/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 44;

/// VIRTIO_VSOCK_TYPE_STREAM.
pub(super) const TYPE_STREAM: u16 = 1;

/// What a packet is for (virtio 1.2, section 5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Op {
    const ALL: [(u16, Self); 7] = [
        (1, Self::Request),
        (2, Self::Response),
        (3, Self::Reset),
        (4, Self::Shutdown),
        (5, Self::Data),
        (6, Self::CreditUpdate),
        (7, Self::CreditRequest),
    ];

    fn from_wire(value: u16) -> Option<Self> {
        Self::ALL.iter().find(|(wire, _)| *wire == value).map(|(_, op)| *op)
    }

    fn wire(self) -> u16 {
        Self::ALL.iter().find(|(_, op)| *op == self).map_or(0, |(wire, _)| *wire)
    }
}

/// The directions that a SHUTDOWN packet closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Shutdown {
    /// The sender of the packet receives no more.
    pub(super) receive: bool,
    /// The sender of the packet sends no more.
    pub(super) send: bool,
}

impl Shutdown {
    pub(super) fn from_flags(flags: u32) -> Self {
        Self { receive: flags & 1 != 0, send: flags & 2 != 0 }
    }

    pub(super) fn flags(self) -> u32 {
        u32::from(self.receive) | u32::from(self.send) << 1
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self { receive: self.receive || other.receive, send: self.send || other.send }
    }

    pub(super) fn both(self) -> bool {
        self.receive && self.send
    }
}

/// The two ends of a stream. Context ids are fixed, so ports name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// A packet of the guest, addresses checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FromGuest {
    pub(super) ports: Ports,
    /// None where the type or the operation is unknown, which calls for a reset (virtio 1.2, section 5.10.6.4).
    pub(super) op: Option<Op>,
    pub(super) len: u32,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl FromGuest {
    /// Parses a header; none where the packet is not from this guest to the host (S24): it is dropped.
    pub(super) fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let (src_cid, dst_cid) = (le(bytes, 0, 8), le(bytes, 8, 8));
        if src_cid != u64::from(GUEST_CID) || dst_cid != u64::from(HOST_CID) {
            return None;
        }
        let stream = le_u16(bytes, 28) == TYPE_STREAM;
        Some(Self {
            ports: Ports { guest: le_u32(bytes, 16), host: le_u32(bytes, 20) },
            op: Op::from_wire(le_u16(bytes, 30)).filter(|_| stream),
            len: le_u32(bytes, 24),
            flags: le_u32(bytes, 32),
            buf_alloc: le_u32(bytes, 36),
            fwd_cnt: le_u32(bytes, 40),
        })
    }
}

/// A packet to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ToGuest {
    pub(super) ports: Ports,
    pub(super) op: Op,
    pub(super) len: u32,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl ToGuest {
    /// A reset for a stream that does not exist (any more).
    pub(super) fn reset(ports: Ports) -> Self {
        Self { ports, op: Op::Reset, len: 0, flags: 0, buf_alloc: 0, fwd_cnt: 0 }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields: [&[u8]; 10] = [
            &u64::from(HOST_CID).to_le_bytes(),
            &u64::from(GUEST_CID).to_le_bytes(),
            &self.ports.host.to_le_bytes(),
            &self.ports.guest.to_le_bytes(),
            &self.len.to_le_bytes(),
            &TYPE_STREAM.to_le_bytes(),
            &self.op.wire().to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }
}

fn le(bytes: &[u8; HEADER_LEN], at: usize, len: usize) -> u64 {
    bytes.iter().skip(at).take(len).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn le_u32(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    le(bytes, at, 4) as u32
}

fn le_u16(bytes: &[u8; HEADER_LEN], at: usize) -> u16 {
    le(bytes, at, 2) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Turns a header around, so that what goes to the guest looks like coming from it.
    fn turned(bytes: [u8; HEADER_LEN]) -> [u8; HEADER_LEN] {
        let mut out = bytes;
        out[..8].copy_from_slice(&bytes[8..16]);
        out[8..16].copy_from_slice(&bytes[..8]);
        out[16..20].copy_from_slice(&bytes[20..24]);
        out[20..24].copy_from_slice(&bytes[16..20]);
        out
    }

    #[test]
    fn s24_foreign_context_ids_are_dropped() {
        let good = turned(ToGuest::reset(Ports { guest: 1, host: 2 }).to_bytes());
        assert!(FromGuest::parse(&good).is_some());
        for (at, cid) in [(0, 0u64), (0, 2), (0, 4), (0, 1 << 32 | 3), (8, 3), (8, 1), (8, u64::MAX)] {
            let mut bad = good;
            bad[at..at + 8].copy_from_slice(&cid.to_le_bytes());
            assert_eq!(FromGuest::parse(&bad), None, "cid {cid} at {at}");
        }
    }

    #[test]
    fn s24_unknown_type_or_operation_has_no_op() {
        let good = turned(ToGuest::reset(Ports { guest: 1, host: 2 }).to_bytes());
        for (at, value) in [(28, 0u8), (28, 2), (29, 1), (30, 0), (30, 8), (31, 1)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(FromGuest::parse(&bad).unwrap().op, None, "{value} at {at}");
        }
    }

    proptest! {
        #[test]
        fn header_round_trips(guest: u32, host: u32, op in 0usize..7, len: u32, flags: u32, buf_alloc: u32, fwd_cnt: u32) {
            let (ports, op) = (Ports { guest, host }, Op::ALL[op].1);
            let sent = ToGuest { ports, op, len, flags, buf_alloc, fwd_cnt };
            let got = FromGuest { ports, op: Some(op), len, flags, buf_alloc, fwd_cnt };
            prop_assert_eq!(FromGuest::parse(&turned(sent.to_bytes())), Some(got));
        }

        #[test]
        fn any_bytes_parse_without_panic(bytes in prop::array::uniform32(any::<u8>())) {
            let mut header = [0; HEADER_LEN];
            header[12..].copy_from_slice(&bytes);
            FromGuest::parse(&header);
        }
    }
}
