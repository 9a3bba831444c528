//! Names of entries: their components, what whiteouts they spell, and how to show them.

use std::fmt;

use super::error::EntryError;

/// Longest name in a directory.
const NAME_MAX: usize = 255;
/// Characters shown of a name.
const SHOWN: usize = 160;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A name out of a layer, escaped and cut, fit for a terminal and a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryName(String);

impl EntryName {
    pub(super) fn new(name: &[u8]) -> Self {
        // Enough bytes for SHOWN characters, whatever the encoding.
        let head = &name[..name.len().min(SHOWN * 4)];
        let text = String::from_utf8_lossy(head);
        let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
        if text.chars().count() > SHOWN || head.len() < name.len() {
            shown.push_str("...");
        }
        Self(shown)
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an entry's path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// `.`, `/`, or nothing.
    Root,
    /// A name in the directory `parent`.
    Name { parent: &'a [u8], name: &'a [u8] },
    /// "`name` of lower layers is deleted."
    Whiteout { parent: &'a [u8], name: &'a [u8] },
    /// "Nothing of lower layers shows in the directory."
    Opaque { parent: &'a [u8] },
    /// Book-keeping of AUFS, which old engines left in layers.
    Aufs,
}

/// Splits a path at its last component. Absolute paths are taken relative to the root.
///
/// # Errors
/// If the path is too long, has a `..` component, or uses names reserved for whiteouts wrongly.
pub(super) fn classify(path: &[u8], path_limit: usize) -> Result<Target<'_>, EntryError> {
    if path.len() > path_limit {
        return Err(EntryError::PathTooLong);
    }
    let mut last: Option<(&[u8], usize)> = None;
    let mut next = 0;
    for component in path.split(|byte| *byte == b'/') {
        let start = next;
        next += component.len() + 1;
        if is_empty(component) {
            continue;
        }
        check_component(component)?;
        match last {
            Some((parent, _)) if parent.starts_with(WHITEOUT_META_PREFIX) => return Ok(Target::Aufs),
            Some((parent, _)) if parent.starts_with(WHITEOUT_PREFIX) => return Err(EntryError::BadWhiteout),
            _ => last = Some((component, start)),
        }
    }
    let Some((name, start)) = last else { return Ok(Target::Root) };
    let parent = &path[..start];
    if name == OPAQUE {
        return Ok(Target::Opaque { parent });
    }
    if name.starts_with(WHITEOUT_META_PREFIX) {
        return Ok(Target::Aufs);
    }
    match name.strip_prefix(WHITEOUT_PREFIX) {
        Some(b"" | b"." | b"..") => Err(EntryError::BadWhiteout),
        Some(name) => Ok(Target::Whiteout { parent, name }),
        None => Ok(Target::Name { parent, name }),
    }
}

/// The components of a path that mean something.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|component| !is_empty(component))
}

fn is_empty(component: &[u8]) -> bool {
    matches!(component, b"" | b".")
}

fn check_component(component: &[u8]) -> Result<(), EntryError> {
    if component == b".." {
        return Err(EntryError::DotDot);
    }
    if component.len() > NAME_MAX {
        return Err(EntryError::PathTooLong);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(path: &str) -> Result<Target<'_>, EntryError> {
        classify(path.as_bytes(), 4096)
    }

    #[test]
    fn paths_are_split_at_the_last_component() {
        let name = Target::Name { parent: b"/a/./b//", name: b"c" };
        assert_eq!(target("/a/./b//c/./").unwrap(), name);
        assert_eq!(target("c").unwrap(), Target::Name { parent: b"", name: b"c" });
    }

    #[test]
    fn i02_all_spellings_of_the_root_are_the_root() {
        for path in ["", ".", "/", "./", "./.", "//", "/./"] {
            assert_eq!(target(path).unwrap(), Target::Root, "{path:?}");
        }
    }

    #[test]
    fn i16_whiteouts_of_nothing_and_of_dots_are_refused() {
        for path in [".wh.", "a/.wh..", ".wh...", ".wh.a/b"] {
            assert!(matches!(target(path), Err(EntryError::BadWhiteout)), "{path:?}");
        }
        assert!(matches!(target("a/.wh.x/../b"), Err(EntryError::DotDot)));
        assert_eq!(target("a/.wh.b").unwrap(), Target::Whiteout { parent: b"a/", name: b"b" });
        assert_eq!(target("a/.wh..wh..opq").unwrap(), Target::Opaque { parent: b"a/" });
        assert_eq!(target(".wh..wh.plnk/1.2").unwrap(), Target::Aufs);
    }

    #[test]
    fn i01_dot_dot_is_refused_wherever_it_stands() {
        for path in ["..", "../a", "a/..", "a/../b", "/..", "./../a"] {
            assert!(matches!(target(path), Err(EntryError::DotDot)), "{path:?}");
        }
    }

    #[test]
    fn names_are_escaped_and_cut() {
        assert_eq!(EntryName::new(b"a\x1b[31m\n\xff\"").to_string(), "a\\u{1b}[31m\\n\u{fffd}\\\"");
        let long = EntryName::new(&[b'x'; 5000]).to_string();
        assert_eq!(long.len(), SHOWN + 3);
    }

    proptest! {
        #[test]
        fn parent_and_name_together_are_the_path(path in "[./a-c]{0,20}") {
            if let Ok(Target::Name { parent, name }) = target(&path) {
                let joined: Vec<_> = components(parent).chain([name]).collect();
                let all: Vec<_> = components(path.as_bytes()).collect();
                prop_assert_eq!(joined, all);
            }
        }

        #[test]
        fn any_bytes_are_classified_without_panic(path in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = classify(&path, 512);
            let _ = EntryName::new(&path);
        }
    }
}
