//! Names that arrive from outside, parsed once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest container or exec id, in bytes: containerd's own limit.
pub const MAX_ID_LEN: usize = 76;

/// An id that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The id is empty.
    #[error("id is empty")]
    Empty,
    /// The id is longer than [`MAX_ID_LEN`].
    #[error("id has {0} bytes, at most {MAX_ID_LEN} are allowed")]
    TooLong(usize),
    /// The id has a character outside `[A-Za-z0-9_.-]`, or does not begin with a letter or digit.
    #[error("id {0:?} may hold only letters, digits, '_', '.' and '-', and begins with a letter or digit")]
    BadCharacter(String),
}

/// Id of a container, sandbox or exec: containerd's identifier grammar, so it is safe as a path component.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        if text.len() > MAX_ID_LEN {
            return Err(IdError::TooLong(text.len()));
        }
        let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
        if !text.bytes().all(good) || !text.as_bytes()[0].is_ascii_alphanumeric() {
            return Err(IdError::BadCharacter(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ContainerId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_id_is_taken() {
        assert_eq!("web-1.a_b".parse::<ContainerId>().unwrap().as_str(), "web-1.a_b");
    }

    #[test]
    fn path_like_ids_are_refused() {
        for bad in ["", ".", "..", "a/b", "-x", "a\0b", "a\n"] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
        assert!("a".repeat(77).parse::<ContainerId>().is_err());
    }

    proptest! {
        #[test]
        fn accepted_ids_are_one_path_component(text in ".{0,100}") {
            if let Ok(id) = text.parse::<ContainerId>() {
                prop_assert!(!id.as_str().contains('/') && id.as_str() != "." && id.as_str() != "..");
            }
        }
    }
}
