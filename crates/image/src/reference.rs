//! Names of images in registries, by the grammar of distribution/reference that Docker users know.
//!
//! ```text
//! busybox                          docker.io/library/busybox:latest
//! ghcr.io/owner/app:1.2            as written
//! 127.0.0.1:5000/app@sha256:...    by digest
//! ```
//!
//! A [`Reference`] is always complete and canonical; [`Reference::familiar`] gives the short form back.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// Longest name (host and path) in bytes, as in distribution/reference.
pub const MAX_NAME_LEN: usize = 255;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// Text that is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("image name is empty")]
    Empty,
    /// Name longer than [`MAX_NAME_LEN`].
    #[error("image name has {0} bytes, at most {MAX_NAME_LEN} are allowed")]
    TooLong(usize),
    /// The registry part is no host or host:port.
    #[error("{0:?} is no registry host")]
    BadHost(String),
    /// The repository part breaks the grammar.
    #[error(
        "{0:?} is no repository name: lower-case letters, digits and single separators '.', '_', '-', '/'"
    )]
    BadPath(String),
    /// The tag breaks the grammar.
    #[error("{0:?} is no tag: letters, digits, '_', '.', '-', at most 128")]
    BadTag(String),
    /// 64 hex digits are an image id, not a name.
    #[error("{0} is an image id, not a name")]
    LooksLikeId(String),
    /// The digest after '@' is none.
    #[error("bad digest in image name")]
    Digest(#[from] DigestError),
}

/// A tag or digest within a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Selector {
    /// Moves when its owner pushes.
    Tag(String),
    /// Never moves.
    Digest(Digest),
}

/// A canonical image reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    domain: String,
    path: String,
    selector: Selector,
}

impl Reference {
    /// Registry, `host` or `host:port`, lower case.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `domain/path`, without tag and digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Tag or digest.
    pub fn selector(&self) -> &Selector {
        &self.selector
    }

    /// The tag, where the reference has one.
    pub fn tag(&self) -> Option<&str> {
        match &self.selector {
            Selector::Tag(tag) => Some(tag),
            Selector::Digest(_) => None,
        }
    }

    /// The digest, where the reference has one.
    pub fn digest(&self) -> Option<&Digest> {
        match &self.selector {
            Selector::Tag(_) => None,
            Selector::Digest(digest) => Some(digest),
        }
    }

    /// The same repository with another selector.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { selector: Selector::Digest(digest), ..self.clone() }
    }

    /// What follows the path in a registry's URL: the tag or the digest.
    pub fn selector_text(&self) -> String {
        match &self.selector {
            Selector::Tag(tag) => tag.clone(),
            Selector::Digest(digest) => digest.to_string(),
        }
    }

    /// Repository without the defaults that Docker leaves out (`busybox`, `owner/app`).
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        match self.path.strip_prefix(OFFICIAL_PREFIX) {
            Some(name) if !name.contains('/') => name.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The short form, as `nacre images` shows it.
    pub fn familiar(&self) -> String {
        match &self.selector {
            Selector::Tag(tag) => format!("{}:{tag}", self.familiar_repository()),
            Selector::Digest(digest) => format!("{}@{digest}", self.familiar_repository()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (name_and_tag, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(name_and_tag);
        if name.len() > MAX_NAME_LEN {
            return Err(ReferenceError::TooLong(name.len()));
        }
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (domain, path) = split_domain(name)?;
        check_path(&path)?;
        // With both, the digest decides, as in Docker: a tag can lie, a digest cannot.
        let selector = match digest {
            Some(digest) => Selector::Digest(digest),
            None => Selector::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
        };
        Ok(Self { domain, path, selector })
    }
}

/// A tag follows the last colon, unless a slash follows that (then it was a port).
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

/// The first component is a host when it could not be part of a path: a dot, a colon, or "localhost".
fn split_domain(name: &str) -> Result<(String, String), ReferenceError> {
    let official = |path: &str| {
        if path.contains('/') { path.to_owned() } else { format!("{OFFICIAL_PREFIX}{path}") }
    };
    let Some((first, rest)) = name.split_once('/') else {
        if name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(ReferenceError::LooksLikeId(name.to_owned()));
        }
        return Ok((DEFAULT_DOMAIN.to_owned(), official(name)));
    };
    let domain = first.to_ascii_lowercase();
    if !domain.contains(['.', ':']) && domain != "localhost" {
        // Upper case makes it a host for Docker. Hosts are lower case here, and then it would be one no more.
        if domain != first {
            return Err(ReferenceError::BadHost(first.to_owned()));
        }
        return Ok((DEFAULT_DOMAIN.to_owned(), name.to_owned()));
    }
    check_host(&domain).ok_or_else(|| ReferenceError::BadHost(first.to_owned()))?;
    if domain == DEFAULT_DOMAIN || domain == LEGACY_DEFAULT_DOMAIN {
        return Ok((DEFAULT_DOMAIN.to_owned(), official(rest)));
    }
    Ok((domain, rest.to_owned()))
}

/// Checks `host`, `host:port`, `[v6]` or `[v6]:port`.
fn check_host(domain: &str) -> Option<()> {
    if let Some(rest) = domain.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        address.parse::<Ipv6Addr>().ok()?;
        return if port.is_empty() { Some(()) } else { check_port(port.strip_prefix(':')?) };
    }
    let host = match domain.split_once(':') {
        Some((host, port)) => {
            check_port(port)?;
            host
        }
        None => domain,
    };
    let good_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(good_label).then_some(())
}

fn check_port(port: &str) -> Option<()> {
    let digits = (1..=5).contains(&port.len()) && port.bytes().all(|c| c.is_ascii_digit());
    (digits && port.parse::<u16>().ok()? != 0).then_some(())
}

/// `component ("/" component)*`; a component is `[a-z0-9]+` joined by ".", "_", "__" or any number of "-".
fn check_path(path: &str) -> Result<(), ReferenceError> {
    if path.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err(ReferenceError::BadPath(path.to_owned()))
    }
}

fn is_path_component(component: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let (Some(&first), Some(&last)) = (component.as_bytes().first(), component.as_bytes().last()) else {
        return false;
    };
    alphanumeric(first)
        && alphanumeric(last)
        && component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|c| c == b'-')
        })
}

fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let good = (1..=128).contains(&tag.len())
        && tag.bytes().all(|c| word(c) || c == b'.' || c == b'-')
        && tag.bytes().next().is_some_and(word);
    if good { Ok(()) } else { Err(ReferenceError::BadTag(tag.chars().take(160).collect())) }
}

/// Whether a registry host (with or without port) is this machine: http is allowed there.
pub fn is_loopback(domain: &str) -> bool {
    let host = match domain.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => domain.split(':').next().unwrap_or(""),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Selector::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn docker_defaults_are_filled_in() {
        assert_eq!(canonical("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(canonical("owner/app:1"), "docker.io/owner/app:1");
        assert_eq!(canonical("docker.io/busybox"), "docker.io/library/busybox:latest");
        assert_eq!(canonical("index.docker.io/a/b"), "docker.io/a/b:latest");
        assert_eq!(canonical("localhost/app"), "localhost/app:latest");
        assert_eq!(canonical("127.0.0.1:5000/demo/python"), "127.0.0.1:5000/demo/python:latest");
        assert_eq!(canonical("[::1]:5000/x:y"), "[::1]:5000/x:y");
        assert_eq!(canonical("Example.com/app"), "example.com/app:latest");
        assert_eq!(canonical(&format!("ghcr.io/a/b:tag@sha256:{HEX}")), format!("ghcr.io/a/b@sha256:{HEX}"));
    }

    #[test]
    fn familiar_form_leaves_the_defaults_out() {
        let familiar = |text: &str| text.parse::<Reference>().unwrap().familiar();
        assert_eq!(familiar("docker.io/library/busybox"), "busybox:latest");
        assert_eq!(familiar("docker.io/a/b:1"), "a/b:1");
        assert_eq!(familiar("quay.io/a/b"), "quay.io/a/b:latest");
    }

    #[test]
    fn i07_names_that_could_become_paths_or_urls_are_refused() {
        let id = HEX.to_owned();
        let short_digest = format!("a@sha256:{}", &HEX[1..]);
        let upper_digest = format!("a@sha256:{}", HEX.to_uppercase());
        let long = "a".repeat(256);
        let bad = [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "..",
            "../a",
            "a/..",
            "a/../b",
            ".",
            "a/./b",
            "x.y/../z",
            "a b",
            "a:b c",
            "A",
            "a/B",
            "A/b",
            "a@",
            "a@sha256:../x",
            "a:",
            "a:.x",
            "a:-x",
            "a..b",
            "a___b",
            "a_",
            "-a",
            "a\n",
            "a\0",
            "a%2e",
            "a?b",
            "a#b",
            "a:b/c",
            "x.y:0/a",
            "x.y:99999/a",
            "x.y:+80/a",
            "[::g]/a",
            "[::1/a",
            "x..y/a",
            "-x.y/a",
            "http://x.y/a",
            "user@x.y/a",
            "x.y:80:80/a",
            "é",
            &id,
            &short_digest,
            &upper_digest,
            &long,
        ];
        for text in bad {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        let tag = format!("a:{}", "t".repeat(129));
        assert!(tag.parse::<Reference>().is_err());
    }

    #[test]
    fn loopback_is_known_by_name_and_address() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.8.9.1:1", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["localhost.evil.example", "127.0.0.1.evil.example", "128.0.0.1", "[::2]", "", "10.0.0.1:80"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_not_without_panic(text in ".{0,300}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn i07_accepted_names_are_canonical_and_safe_in_urls(
            text in "([a-zA-Z0-9.\\[\\]:-]{1,12}/)?[a-z0-9._/%-]{1,20}(:[a-zA-Z0-9._/-]{0,10})?"
        ) {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                prop_assert_eq!(&again, &reference);
                let short: Reference = reference.familiar().parse().unwrap();
                prop_assert_eq!(&short, &reference);
                for part in reference.path().split('/') {
                    prop_assert!(!part.is_empty() && !part.contains("..") && !part.starts_with('.'));
                }
                let safe = |c: char| c.is_ascii_alphanumeric() || "._-/:@[]".contains(c);
                prop_assert!(reference.to_string().chars().all(safe));
            }
        }
    }
}
