//! Extended attributes as they lie behind an inode (`erofs_xattr_ibody_header` and its entries).

const HEADER_LEN: usize = 12;
const ENTRY_LEN: usize = 4;
/// `i_xattr_icount` has 16 bits: the header and 65 534 further units of 4 bytes.
const BODY_MAX: usize = HEADER_LEN + 4 * (u16::MAX as usize - 1);

const INDEX_USER: u8 = 1;
const INDEX_ACL_ACCESS: u8 = 2;
const INDEX_ACL_DEFAULT: u8 = 3;
const INDEX_TRUSTED: u8 = 4;
const INDEX_SECURITY: u8 = 6;

/// Why an attribute was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum XattrError {
    /// The name has no namespace that EROFS knows; Linux could not store it either.
    #[error("namespace of the extended attribute is not one of user, trusted, security and the ACLs")]
    UnknownNamespace,
    /// The name is empty behind its namespace or longer than Linux allows.
    #[error("name of the extended attribute has {len} bytes")]
    BadNameLength {
        /// Bytes of the name.
        len: usize,
    },
    /// The value is longer than 65 535 bytes.
    #[error("value of the extended attribute has {len} bytes, more than 65535")]
    ValueTooLong {
        /// Bytes of the value.
        len: usize,
    },
    /// All attributes together do not fit behind one inode.
    #[error("extended attributes of the file need more than {BODY_MAX} bytes")]
    TooMany,
}

/// The encoded attributes of one inode; empty if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct XattrBody(Vec<u8>);

impl XattrBody {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds an attribute. Names must be unique: the caller sees to it.
    ///
    /// # Errors
    /// If Linux or EROFS cannot hold it; the body stays as it was.
    pub(crate) fn push(&mut self, name: &[u8], value: &[u8]) -> Result<(), XattrError> {
        let (index, suffix) = split_name(name)?;
        let value_len =
            u16::try_from(value.len()).map_err(|_| XattrError::ValueTooLong { len: value.len() })?;
        let name_len =
            u8::try_from(suffix.len()).map_err(|_| XattrError::BadNameLength { len: name.len() })?;
        let start = self.0.len().max(HEADER_LEN);
        let end = (start + ENTRY_LEN + suffix.len() + value.len()).next_multiple_of(4);
        if end > BODY_MAX {
            return Err(XattrError::TooMany);
        }
        self.0.resize(start, 0);
        self.0.extend_from_slice(&[name_len, index]);
        self.0.extend_from_slice(&value_len.to_le_bytes());
        self.0.extend_from_slice(suffix);
        self.0.extend_from_slice(value);
        self.0.resize(end, 0);
        Ok(())
    }
}

/// The namespace's number and the rest of the name.
fn split_name(name: &[u8]) -> Result<(u8, &[u8]), XattrError> {
    // The two ACL names are whole names: on disk nothing is left of them.
    match name {
        b"system.posix_acl_access" => return Ok((INDEX_ACL_ACCESS, b"")),
        b"system.posix_acl_default" => return Ok((INDEX_ACL_DEFAULT, b"")),
        _ => {}
    }
    let namespaces: [(&[u8], u8); 3] =
        [(b"user.", INDEX_USER), (b"trusted.", INDEX_TRUSTED), (b"security.", INDEX_SECURITY)];
    let (prefix, index) = namespaces
        .into_iter()
        .find(|(prefix, _)| name.starts_with(prefix))
        .ok_or(XattrError::UnknownNamespace)?;
    if name.len() == prefix.len() || name.len() > 255 {
        return Err(XattrError::BadNameLength { len: name.len() });
    }
    Ok((index, &name[prefix.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_laid_out_as_the_kernel_reads_them() {
        let mut body = XattrBody::default();
        body.push(b"user.a", b"xyz").unwrap();
        body.push(b"system.posix_acl_access", b"\x02\0\0\0").unwrap();
        let expected = [&[0u8; 12][..], &[1, 1, 3, 0], b"axyz", &[0, 2, 4, 0], b"\x02\0\0\0"].concat();
        assert_eq!(body.as_bytes(), expected);
    }

    #[test]
    fn foreign_namespaces_and_bad_lengths_are_refused() {
        let mut body = XattrBody::default();
        assert_eq!(body.push(b"com.apple.quarantine", b""), Err(XattrError::UnknownNamespace));
        assert_eq!(body.push(b"user.", b""), Err(XattrError::BadNameLength { len: 5 }));
        let long = [b"user.".as_slice(), &[b'a'; 251]].concat();
        assert_eq!(body.push(&long, b""), Err(XattrError::BadNameLength { len: 256 }));
        assert_eq!(body.push(b"user.a", &[0; 65_536]), Err(XattrError::ValueTooLong { len: 65_536 }));
        assert_eq!(body.len(), 0);
    }

    #[test]
    fn a_body_never_outgrows_the_count_in_the_inode() {
        let mut body = XattrBody::default();
        let value = vec![7; 65_535];
        let refused = (0..5).find_map(|n| body.push(format!("user.{n}").as_bytes(), &value).err());
        assert_eq!(refused, Some(XattrError::TooMany));
        assert!(body.len() <= BODY_MAX);
    }
}
