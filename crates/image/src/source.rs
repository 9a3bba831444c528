//! Where an image comes from: a registry, an OCI layout directory, or an archive file.
//!
//! The prefixes are those of skopeo and Podman. As there, the first colon after the prefix ends the path, so a
//! path with a colon cannot be named.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::reference::{Reference, ReferenceError};

/// Longest name of an image inside a layout or archive.
const MAX_SELECTION_LEN: usize = 512;

/// Text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// `oci:`, `oci-archive:` or `docker-archive:` without a path.
    #[error("{0}: needs a path")]
    NoPath(&'static str),
    /// The part after the path is empty or too long.
    #[error("{0:?} does not name an image in an archive")]
    BadSelection(String),
    /// Neither a known prefix nor an image name.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
}

/// A place to get an image from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A registry.
    Registry(Reference),
    /// A directory, or an archive file.
    Local {
        /// What the path leads to.
        kind: LocalKind,
        /// The directory or file.
        path: PathBuf,
        /// Which image in it; none: the only one.
        select: Option<String>,
    },
}

/// Forms of images outside registries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalKind {
    /// OCI image layout in a directory.
    OciDir,
    /// OCI image layout in a tar file.
    OciArchive,
    /// What `docker save` writes.
    DockerArchive,
}

impl LocalKind {
    const ALL: [Self; 3] = [Self::OciDir, Self::OciArchive, Self::DockerArchive];

    fn prefix(self) -> &'static str {
        match self {
            Self::OciDir => "oci",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        for kind in LocalKind::ALL {
            let Some(rest) = text.strip_prefix(kind.prefix()).and_then(|rest| rest.strip_prefix(':')) else {
                continue;
            };
            // "oci:1.2" alone would be an image called oci with a tag; skopeo's meaning wins, as in Podman.
            let (path, select) = match rest.split_once(':') {
                Some((path, select)) => (path, Some(select)),
                None => (rest, None),
            };
            if path.is_empty() {
                return Err(SourceError::NoPath(kind.prefix()));
            }
            if let Some(select) = select
                && (select.is_empty()
                    || select.len() > MAX_SELECTION_LEN
                    || select.contains(char::is_control))
            {
                return Err(SourceError::BadSelection(select.chars().take(64).collect()));
            }
            return Ok(Self::Local { kind, path: path.into(), select: select.map(str::to_owned) });
        }
        Ok(Self::Registry(text.parse()?))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Local { kind, path, select } => {
                write!(f, "{}:{}", kind.prefix(), path.display())?;
                match select {
                    Some(select) => write!(f, ":{select}"),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn prefixes_name_local_sources() {
        let source: Source = "oci:/tmp/layout:v1".parse().unwrap();
        let expected =
            Source::Local { kind: LocalKind::OciDir, path: "/tmp/layout".into(), select: Some("v1".into()) };
        assert_eq!(source, expected);
        let source: Source = "docker-archive:a.tar".parse().unwrap();
        let expected = Source::Local { kind: LocalKind::DockerArchive, path: "a.tar".into(), select: None };
        assert_eq!(source, expected);
        assert!(
            matches!("oci-archive:x:repo/app:1".parse(), Ok(Source::Local { select: Some(s), .. }) if s == "repo/app:1")
        );
    }

    #[test]
    fn anything_else_is_a_registry_name() {
        assert!(matches!("ociimage:1".parse(), Ok(Source::Registry(_))));
        assert!(matches!("oci/app:1".parse(), Ok(Source::Registry(_))));
    }

    #[test]
    fn empty_path_or_selection_is_refused() {
        assert_eq!("oci:".parse::<Source>(), Err(SourceError::NoPath("oci")));
        assert_eq!("oci::x".parse::<Source>(), Err(SourceError::NoPath("oci")));
        assert!("oci:dir:".parse::<Source>().is_err());
    }

    proptest! {
        #[test]
        fn sources_print_as_they_are_written(path in "[a-z/._-]{1,20}", select in proptest::option::of("[a-z:/]{1,9}")) {
            let text = match &select {
                Some(select) => format!("oci-archive:{path}:{select}"),
                None => format!("oci-archive:{path}"),
            };
            prop_assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
    }
}
