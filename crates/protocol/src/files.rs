//! Small files of a bundle that cross to the guest by value instead of through a file server.
//!
//! A container's `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` are bind mounts of files in its bundle. For a
//! few hundred bytes a virtio-fs device and its server would cost more than all the rest of a start, so the request
//! that creates the container carries them (`BundleFile`), and the source of such a mount is
//! [`FILES_DIR`]`/<name>`. What the container writes to such a file stays in its guest.

use std::fmt;
use std::str::FromStr;

/// Directory that a mount's source names for a file of the same request. No such directory needs to exist.
pub const FILES_DIR: &str = "/run/nacre/files";

/// Most files of one container.
pub const MAX_FILES: usize = 16;

/// Most bytes of one file.
pub const MAX_FILE_BYTES: usize = 64 << 10;

/// Longest name.
pub const MAX_NAME_LEN: usize = 64;

/// A name that cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("name of a file is not 1 to {MAX_NAME_LEN} lower-case letters, digits and '-'")]
pub struct BadFileName;

/// Name of a file under [`FILES_DIR`]: one path component of `[a-z0-9-]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FileName(String);

impl FileName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FileName {
    type Err = BadFileName;

    fn from_str(text: &str) -> Result<Self, BadFileName> {
        let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if text.is_empty() || text.len() > MAX_NAME_LEN || !text.bytes().all(good) {
            return Err(BadFileName);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_name_is_taken() {
        assert_eq!("m7-x".parse::<FileName>().unwrap().as_str(), "m7-x");
    }

    #[test]
    fn a01_names_that_lead_elsewhere_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "/etc", "a\0", "a\n", "A"] {
            assert!(bad.parse::<FileName>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(MAX_NAME_LEN + 1).parse::<FileName>().is_err());
    }

    proptest! {
        #[test]
        fn accepted_names_are_one_component(text in ".{0,80}") {
            if text.parse::<FileName>().is_ok() {
                prop_assert!(!text.contains(['/', '.', '\0']) && !text.is_empty());
            }
        }
    }
}
