//! Records of a POSIX extended header: `LEN KEY=VALUE\n`, bytes to fields. Pure.

use std::collections::BTreeMap;

use crate::erofs::Timestamp;

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What is wrong with an extended header.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaxError {
    /// It is larger than allowed.
    #[error("it has {len} bytes, more than {limit}")]
    TooLarge {
        /// What it claims.
        len: u64,
        /// The limit.
        limit: usize,
    },
    /// A record is not a length, a key and a value.
    #[error("a record is not of the form \"length key=value\"")]
    Record,
    /// A value does not have the form that its key asks for.
    #[error("the value of {0} is wrong")]
    Value(&'static str),
    /// A header for all following entries tries to name or resize them.
    #[error("a global header sets {0} for all entries")]
    Global(String),
}

/// What an extended header says about the entry that follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PaxFields {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    /// By name: a later record replaces an earlier one.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: PaxSparse,
}

/// The `GNU.sparse.` records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PaxSparse {
    /// Version 1.0: the map lies before the data.
    pub(super) map_in_data: bool,
    /// Versions 0.0 and 0.1: offsets and lengths in turn.
    pub(super) numbers: Vec<u64>,
    /// Whether there was any map record, even an empty one.
    pub(super) has_map: bool,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
}

/// Parses the records of an extended header.
///
/// # Errors
/// If a record is malformed.
pub(super) fn parse(bytes: &[u8]) -> Result<PaxFields, PaxError> {
    let mut fields = PaxFields::default();
    let mut version = (None, None);
    each_record(bytes, |key, value| {
        // An empty value leaves the header's field in force; an extended attribute may well be empty.
        if value.is_empty() && !key.starts_with(XATTR_PREFIX) {
            return Ok(());
        }
        match key {
            b"path" => fields.path = Some(text(value, "path")?),
            b"linkpath" => fields.link = Some(text(value, "linkpath")?),
            b"size" => fields.size = Some(decimal(value).ok_or(PaxError::Value("size"))?),
            b"uid" => fields.uid = Some(decimal(value).ok_or(PaxError::Value("uid"))?),
            b"gid" => fields.gid = Some(decimal(value).ok_or(PaxError::Value("gid"))?),
            b"mtime" => fields.mtime = Some(timestamp(value).ok_or(PaxError::Value("mtime"))?),
            b"GNU.sparse.major" => version.0 = decimal(value),
            b"GNU.sparse.minor" => version.1 = decimal(value),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    fields.xattrs.insert(name.to_vec(), value.to_vec());
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    sparse_record(&mut fields.sparse, key, value)?;
                }
            }
        }
        Ok(())
    })?;
    fields.sparse.map_in_data = version == (Some(1), Some(0));
    Ok(fields)
}

/// Checks a header for all entries. Go ignores what it says, and so do we, where that is harmless.
///
/// # Errors
/// If it is malformed, or an archiver that honours it would see other entries than we do.
pub(super) fn check_global(bytes: &[u8]) -> Result<(), PaxError> {
    each_record(bytes, |key, _| {
        let decisive = matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.");
        if decisive { Err(PaxError::Global(String::from_utf8_lossy(key).into_owned())) } else { Ok(()) }
    })
}

fn each_record(
    mut bytes: &[u8],
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), PaxError>,
) -> Result<(), PaxError> {
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(PaxError::Record)?;
        let len =
            decimal(&bytes[..space]).and_then(|len| usize::try_from(len).ok()).ok_or(PaxError::Record)?;
        if len > bytes.len() || len < space + 2 {
            return Err(PaxError::Record);
        }
        let (record, rest) = bytes.split_at(len);
        let body = record[space + 1..].strip_suffix(b"\n").ok_or(PaxError::Record)?;
        let equals = body.iter().position(|byte| *byte == b'=').ok_or(PaxError::Record)?;
        if equals == 0 || body[..equals].contains(&0) {
            return Err(PaxError::Record);
        }
        take(&body[..equals], &body[equals + 1..])?;
        bytes = rest;
    }
    Ok(())
}

fn sparse_record(sparse: &mut PaxSparse, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
    let wrong = PaxError::Value("GNU.sparse");
    match key {
        b"name" => sparse.name = Some(text(value, "GNU.sparse.name")?),
        b"size" | b"realsize" => sparse.real_size = Some(decimal(value).ok_or(wrong)?),
        b"offset" | b"numbytes" => {
            // They come in turn; which of the two this is follows from how many there are.
            if (key == b"offset") != sparse.numbers.len().is_multiple_of(2) {
                return Err(wrong);
            }
            sparse.has_map = true;
            sparse.numbers.push(decimal(value).ok_or(wrong)?);
        }
        b"map" => {
            sparse.has_map = true;
            sparse.numbers.clear();
            for number in value.split(|byte| *byte == b',') {
                sparse.numbers.push(decimal(number).ok_or(PaxError::Value("GNU.sparse.map"))?);
            }
        }
        b"numblocks" => sparse.has_map = true,
        _ => {}
    }
    Ok(())
}

fn text(value: &[u8], key: &'static str) -> Result<Vec<u8>, PaxError> {
    if value.contains(&0) { Err(PaxError::Value(key)) } else { Ok(value.to_vec()) }
}

/// Digits only: no sign, no space.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// Seconds with an optional sign and fraction; beyond nanoseconds the fraction is cut towards the past.
fn timestamp(value: &[u8]) -> Option<Timestamp> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let whole = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    if !negative {
        return Some(Timestamp { secs: whole, nanos });
    }
    let secs = whole.checked_neg()?;
    if nanos == 0 {
        return Some(Timestamp { secs, nanos });
    }
    Some(Timestamp { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let len = (body..body + 20).find(|len| len.to_string().len() + body == *len).unwrap();
        [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }

    #[test]
    fn fields_are_taken_from_their_records() {
        let bytes = [
            record(b"path", "grün/x".as_bytes()),
            record(b"mtime", b"-1.25"),
            record(b"size", b"8589934592"),
            record(b"SCHILY.xattr.user.a", b"\0\n=binary"),
            record(b"comment", b"whatever"),
        ]
        .concat();
        let fields = parse(&bytes).unwrap();
        assert_eq!(fields.path.as_deref(), Some("grün/x".as_bytes()));
        assert_eq!(fields.mtime, Some(Timestamp { secs: -2, nanos: 750_000_000 }));
        assert_eq!(fields.size, Some(8 << 30));
        assert_eq!(fields.xattrs[b"user.a".as_slice()], b"\0\n=binary");
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            b"path=x\n".as_slice(),
            b"9999 path=x\n",
            b"3 x\n",
            b"7 path\n",
            b"6 =x12",
            b"99999999999999999999999 a=b\n",
            b"0 a=b\n",
            b"+9 a=bcd\n",
        ] {
            assert_eq!(parse(bytes), Err(PaxError::Record), "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(parse(&record(b"path", b"a\0b")), Err(PaxError::Value("path")));
        assert_eq!(parse(&record(b"size", b"-1")), Err(PaxError::Value("size")));
        assert_eq!(parse(&record(b"mtime", b"1e9")), Err(PaxError::Value("mtime")));
    }

    #[test]
    fn sparse_records_out_of_turn_are_refused() {
        assert!(parse(&record(b"GNU.sparse.numbytes", b"1")).is_err());
        assert!(parse(&record(b"GNU.sparse.map", b"1,x")).is_err());
    }

    #[test]
    fn a_global_header_cannot_rename_entries() {
        assert_eq!(check_global(&record(b"comment", b"commit")), Ok(()));
        assert_eq!(check_global(&record(b"path", b"x")), Err(PaxError::Global("path".into())));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_fail_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = check_global(&bytes);
        }

        #[test]
        fn records_survive_a_round_trip(
            key in "[a-zA-Z.]{1,30}", value in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut seen = Vec::new();
            each_record(&record(key.as_bytes(), &value), |key, value| {
                seen.push((key.to_vec(), value.to_vec()));
                Ok(())
            })
            .unwrap();
            prop_assert_eq!(seen, vec![(key.into_bytes(), value)]);
        }
    }
}
