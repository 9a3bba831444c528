//! Rtnetlink messages: byte-exact building and parsing (netlink(7), rtnetlink(7)), without sockets.
//!
//! Own code rather than a crate, since four requests and one dump need two hundred lines, and each attribute
//! that is sent can be read here.

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A request that is being built.
#[derive(Debug)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

/// One message out of a reply.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply<'a> {
    /// The request was carried out, or this errno says why not.
    Ack(Result<(), i32>),
    /// End of a dump.
    Done,
    /// A message of this type.
    Message { kind: u16, payload: &'a [u8] },
}

/// A reply that breaks its own framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink message")]
pub(super) struct Malformed;

impl Request {
    /// A request of type `kind` whose family header is `body`.
    pub(super) fn new(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        let mut request = Self { bytes };
        request.pad();
        request
    }

    /// Adds an attribute. Callers check that `value` is short; 16 bits of length never wrap (C09).
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        debug_assert!(value.len() <= 64, "longest attribute is a link name or an address");
        let length = u16::try_from(value.len() + 4).unwrap_or(4);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&value[..usize::from(length) - 4]);
        self.pad();
        self
    }

    /// The finished message.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Splits a datagram into the messages that carry `sequence`.
pub(super) fn replies(datagram: &[u8], sequence: u32) -> impl Iterator<Item = Result<Reply<'_>, Malformed>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let Some((length, message)) = take_message(rest) else {
                rest = &[];
                return Some(Err(Malformed));
            };
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if u32_at(message, 8) == Some(sequence) {
                return Some(parse_message(message).ok_or(Malformed));
            }
        }
        None
    })
}

fn take_message(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let message = bytes.get(..length).filter(|_| length >= HEADER)?;
    Some((length, message))
}

fn parse_message(message: &[u8]) -> Option<Reply<'_>> {
    let kind = u16_at(message, 4)?;
    let payload = message.get(HEADER..)?;
    Some(match i32::from(kind) {
        libc::NLMSG_ERROR => match u32_at(payload, 0)?.cast_signed() {
            0 => Reply::Ack(Ok(())),
            negative => Reply::Ack(Err(negative.checked_neg()?)),
        },
        libc::NLMSG_DONE => Reply::Done,
        _ => Reply::Message { kind, payload },
    })
}

/// Attributes of a message, after its family header of `skip` bytes. Stops at the first that is malformed.
pub(super) fn attributes(payload: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = payload.get(skip..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        // The two upper bits are flags.
        let kind = u16_at(rest, 2)? & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A native 16 bit number at an offset.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

/// A native 32 bit number at an offset.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn request_is_laid_out_as_the_kernel_reads_it() {
        let bytes = Request::new(16, 4, 9, &[1; 16]).attribute(3, b"eth0\0").finish();
        assert_eq!(bytes.len(), 16 + 16 + 12);
        assert_eq!(u32_at(&bytes, 0), Some(44));
        assert_eq!(u16_at(&bytes, 4), Some(16));
        assert_eq!(u16_at(&bytes, 6), Some(5));
        assert_eq!(u32_at(&bytes, 8), Some(9));
        assert_eq!(bytes[32..44], *b"\x09\0\x03\0eth0\0\0\0\0");
    }

    #[test]
    fn acknowledgement_and_error_are_told_apart() {
        let mut ok = Request::new(libc::NLMSG_ERROR as u16, 0, 5, &0_u32.to_ne_bytes()).finish();
        let bad = Request::new(libc::NLMSG_ERROR as u16, 0, 5, &(-17_i32).to_ne_bytes()).finish();
        ok.extend(bad);
        let replies: Vec<_> = replies(&ok, 5).collect();
        assert_eq!(replies, [Ok(Reply::Ack(Ok(()))), Ok(Reply::Ack(Err(17)))]);
    }

    #[test]
    fn replies_to_other_requests_are_passed_over() {
        let other = Request::new(libc::NLMSG_ERROR as u16, 0, 4, &0_u32.to_ne_bytes()).finish();
        assert_eq!(replies(&other, 5).count(), 0);
    }

    proptest! {
        #[test]
        fn any_datagram_parses_in_bounded_steps(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(replies(&bytes, 0).count() <= bytes.len() / HEADER + 1);
            prop_assert!(attributes(&bytes, 16).count() <= bytes.len() / 4);
        }

        #[test]
        fn attributes_round_trip(values in proptest::collection::vec((0_u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..60)), 0..8)) {
            let mut request = Request::new(1, 0, 1, &[]);
            for (kind, value) in &values {
                request = request.attribute(*kind, value);
            }
            let bytes = request.finish();
            let parsed: Vec<_> = attributes(&bytes, HEADER).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(parsed, values);
        }
    }
}
