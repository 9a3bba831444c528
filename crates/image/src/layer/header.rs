//! One tar header: 512 bytes to fields. Pure; nothing outside the record is looked at.
//!
//! Layouts: POSIX.1-1988 (v7), POSIX.1-2001 `ustar`, and GNU, which has other fields where ustar has a
//! prefix of the name.

use super::input::RECORD;

/// What makes 512 bytes not a header.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The sum of the bytes is not the one that the header states.
    #[error("its checksum is wrong")]
    Checksum,
    /// A number is neither octal nor base 256, or negative or too large for its purpose.
    #[error("its field {0} is not a number")]
    Number(&'static str),
    /// A record of zeros, which ends an archive, is followed by something else.
    #[error("it follows an end-of-archive record")]
    AfterEnd,
}

/// Dialect, by the magic bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V7,
    Ustar,
    Gnu,
}

/// The fields of a header. Strings end at their first zero byte.
#[derive(Clone, Debug)]
pub(super) struct Header<'a> {
    pub(super) dialect: Dialect,
    pub(super) type_flag: u8,
    pub(super) name: &'a [u8],
    /// Goes before the name, with a slash, unless empty.
    pub(super) prefix: &'a [u8],
    pub(super) link: &'a [u8],
    pub(super) mode: u16,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) major: u64,
    pub(super) minor: u64,
    raw: &'a [u8; RECORD],
}

impl<'a> Header<'a> {
    /// # Errors
    /// If the record is not a header.
    pub(super) fn parse(raw: &'a [u8; RECORD]) -> Result<Self, HeaderError> {
        check_sum(raw)?;
        let dialect = match &raw[257..265] {
            b"ustar\x0000" => Dialect::Ustar,
            b"ustar  \0" => Dialect::Gnu,
            _ => Dialect::V7,
        };
        let unsigned = |field: &'static str, at: std::ops::Range<usize>| {
            number(&raw[at]).and_then(|n| u64::try_from(n).ok()).ok_or(HeaderError::Number(field))
        };
        let (mut major, mut minor) = (0, 0);
        if dialect != Dialect::V7 {
            major = unsigned("devmajor", 329..337)?;
            minor = unsigned("devminor", 337..345)?;
        }
        Ok(Self {
            dialect,
            type_flag: raw[156],
            name: string(&raw[0..100]),
            prefix: if dialect == Dialect::Ustar { string(&raw[345..500]) } else { b"" },
            link: string(&raw[157..257]),
            // Some archivers put the file type above the permission bits.
            mode: (unsigned("mode", 100..108)? & 0o7777) as u16,
            uid: unsigned("uid", 108..116)?,
            gid: unsigned("gid", 116..124)?,
            size: unsigned("size", 124..136)?,
            mtime: number(&raw[136..148]).ok_or(HeaderError::Number("mtime"))?,
            major,
            minor,
            raw,
        })
    }

    /// GNU: the four places of the sparse map within the header, whether more follow, and the real size.
    ///
    /// # Errors
    /// If a number is none.
    pub(super) fn gnu_sparse(&self) -> Result<(&'a [u8], bool, u64), HeaderError> {
        let real_size = number(&self.raw[483..495])
            .and_then(|n| u64::try_from(n).ok())
            .ok_or(HeaderError::Number("realsize"))?;
        Ok((&self.raw[386..482], self.raw[482] != 0, real_size))
    }
}

/// Bytes up to the first zero.
pub(super) fn string(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A numeric field: octal text, or base 256 in two's complement if the top bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn base256(field: &[u8]) -> Option<i64> {
    let negative = field.first()? & 0x40 != 0;
    // The marker bit is not part of the number: it takes the value of the sign bit next to it.
    let first = if negative { field.first()? | 0x80 } else { field.first()? & 0x7f };
    let start = if negative { -1i64 } else { 0 };
    std::iter::once(&first)
        .chain(field.iter().skip(1))
        .try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

fn octal(field: &[u8]) -> Option<i64> {
    let is_pad = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !is_pad(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let digits = &digits[..digits.iter().position(is_pad).unwrap_or(digits.len())];
    digits.iter().try_fold(0i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// Sum of all bytes with the checksum field as spaces. Old archivers summed signed bytes.
fn check_sum(raw: &[u8; RECORD]) -> Result<(), HeaderError> {
    let stated = octal(&raw[148..156]).ok_or(HeaderError::Checksum)?;
    let field = 148..156;
    let unsigned = |bytes: &[u8]| bytes.iter().map(|byte| i64::from(*byte)).sum::<i64>();
    let sum = unsigned(raw) - unsigned(&raw[field.clone()]) + 8 * i64::from(b' ');
    if sum == stated {
        return Ok(());
    }
    let high = |bytes: &[u8]| bytes.iter().filter(|byte| **byte >= 0x80).count() as i64;
    if sum - 256 * (high(raw) - high(&raw[field])) == stated { Ok(()) } else { Err(HeaderError::Checksum) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"64x\0"), None);
        assert_eq!(number(b"-1\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]), Some(1 << 24));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xfe]), Some(-2));
    }

    #[test]
    fn i01_huge_numbers_do_not_wrap() {
        assert_eq!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(&[0xbf; 12]), None);
        assert_eq!(number(&[0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(b"7777777777777777777777777"), None);
    }

    proptest! {
        #[test]
        fn any_record_parses_or_fails_without_panic(bytes in prop::collection::vec(any::<u8>(), RECORD)) {
            let mut raw: [u8; RECORD] = bytes.try_into().unwrap();
            let _ = Header::parse(&raw);
            // With a right checksum the fields are reached.
            raw[148..156].fill(b' ');
            let sum: u32 = raw.iter().map(|byte| u32::from(*byte)).sum();
            raw[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            if let Ok(header) = Header::parse(&raw) {
                let _ = header.gnu_sparse();
                prop_assert!(header.mode <= 0o7777);
            }
        }
    }
}
