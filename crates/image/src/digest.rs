//! Content digests, parsed once (OCI image spec, descriptor.md, "Digests").
//!
//! A [`Digest`] holds nothing but `sha256:` or `sha512:` and lower-case hex of exactly the right length, so it
//! is safe as a path component and in a URL. Everything else in a manifest, header or file name is refused
//! before it is used (CVE-2024-3727 is the class).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// Text that is no digest we take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `algorithm:` in front.
    #[error("digest {0:?} has no algorithm")]
    NoAlgorithm(String),
    /// An algorithm other than sha256 and sha512.
    #[error("digest algorithm {0:?} is not supported (sha256 and sha512 are)")]
    UnknownAlgorithm(String),
    /// The hex part has the wrong length or a character outside `[0-9a-f]`.
    #[error("digest {0:?} is malformed: {1} lower-case hex digits are needed after the colon")]
    Malformed(String, usize),
}

/// Hash functions of the OCI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name in front of the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A checked digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The lower-case hex digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first twelve hex digits, as command lines show them.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }

    /// SHA-256 of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Whether `bytes` are what the digest names.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        // What is shown again in a message is bounded: the text may be megabytes of somebody's JSON.
        let shown = || text.chars().take(160).collect::<String>();
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::NoAlgorithm(shown()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::UnknownAlgorithm(name.chars().take(32).collect())),
        };
        let lower_hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(lower_hex) {
            return Err(DigestError::Malformed(shown(), algorithm.hex_len()));
        }
        Ok(Self { algorithm, hex: hex.to_owned() })
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

/// A running hash.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Begins a hash.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hash) => hash.update(bytes),
            State::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hash) => Digest { algorithm: Algorithm::Sha256, hex: hex(&hash.finalize()) },
            State::Sha512(hash) => Digest { algorithm: Algorithm::Sha512, hex: hex(&hash.finalize()) },
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn known_digest_of_nothing() {
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
        assert!(EMPTY.parse::<Digest>().unwrap().matches(b""));
        assert!(!EMPTY.parse::<Digest>().unwrap().matches(b"x"));
    }

    #[test]
    fn sha512_is_taken() {
        let text = Hasher::new(Algorithm::Sha512).finish().to_string();
        assert!(text.starts_with("sha512:cf83e135"));
        assert!(text.parse::<Digest>().unwrap().matches(b""));
    }

    #[test]
    fn i07_digests_that_could_become_paths_are_refused() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let sha1 = format!("sha1:{}", "a".repeat(40));
        let long = format!("{EMPTY}0");
        let dotted = format!("sha256:../../{}", "a".repeat(58));
        let bad = [
            "",
            "sha256",
            "sha256:",
            "sha256:..",
            "sha256:../../etc/passwd",
            &EMPTY[..70],
            &upper,
            &sha1,
            &long,
            &dotted,
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "SHA256:e3b0",
            "sha256+b64:aaaa",
        ];
        for text in bad {
            assert!(text.parse::<Digest>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn i07_an_accepted_digest_is_one_safe_path_component(text in "(sha256|sha512|[a-z0-9]{0,8}):[a-f0-9./%A-F]{0,140}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert!(digest.hex().bytes().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase()));
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn digests_round_trip(bytes: Vec<u8>) {
            let digest = Digest::sha256(&bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest.clone()));
            prop_assert!(digest.matches(&bytes));
        }
    }
}
