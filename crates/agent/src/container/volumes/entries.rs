//! What a volume holds, as the host tells it, and the check that it can be.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use nacre_protocol::volumes::{MAX_BYTES, MAX_ENTRIES, MAX_PATH};

use super::VolumeError;

/// A file, directory or link of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Relative; empty: the volume itself.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub content: VolumeContent,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeContent {
    /// Its entries come later.
    Directory,
    /// With these bytes.
    File(Vec<u8>),
    /// To this target.
    Link(String),
}

/// What is remembered of an entry that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
}

/// What an entry is, without the bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Link(String),
}

impl VolumeEntry {
    pub(super) fn known(&self) -> Known {
        let kind = match &self.content {
            VolumeContent::Directory => Kind::Directory,
            VolumeContent::File(_) => Kind::File,
            VolumeContent::Link(target) => Kind::Link(target.clone()),
        };
        Known { kind, mode: self.mode, owner: (self.uid, self.gid) }
    }
}

/// Bounds, names that stay in the volume, and each directory before what is in it.
pub(super) fn check(entries: &[VolumeEntry]) -> Result<(), VolumeError> {
    let bad = |what| Err(VolumeError::Entries(what));
    if entries.len() > MAX_ENTRIES {
        return bad("too many");
    }
    let mut bytes = 0_usize;
    let mut seen: BTreeMap<&str, bool> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let is_directory = entry.content == VolumeContent::Directory;
        match &entry.content {
            VolumeContent::File(content) => bytes = bytes.saturating_add(content.len()),
            VolumeContent::Link(target) if !is_text(target) || target.is_empty() => {
                return bad("a link leads nowhere");
            }
            VolumeContent::Directory | VolumeContent::Link(_) => {}
        }
        if bytes > MAX_BYTES || entry.mode > 0o7777 {
            return bad("too many bytes, or a mode that is none");
        }
        if index == 0 {
            if !entry.path.is_empty() || !is_directory {
                return bad("the first is not the volume's own directory");
            }
        } else if !is_inside(&entry.path) {
            return bad("a path leads out");
        } else if seen.get(parent(&entry.path)) != Some(&true) {
            return bad("one is in no directory");
        }
        if seen.insert(&entry.path, is_directory).is_some() {
            return bad("two have the same path");
        }
    }
    if entries.is_empty() { bad("there are none") } else { Ok(()) }
}

/// Everything before the last slash.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Everything behind the last slash.
pub(super) fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn is_text(text: &str) -> bool {
    text.len() <= MAX_PATH && !text.contains('\0')
}

fn is_inside(path: &str) -> bool {
    let plain = |part| matches!(part, Component::Normal(name) if name.len() <= 255);
    // A second spelling of the same path would be another key.
    let rebuilt: std::path::PathBuf = Path::new(path).components().collect();
    !path.is_empty()
        && is_text(path)
        && Path::new(path).components().all(plain)
        && rebuilt.as_os_str() == path
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn entry(path: &str, content: VolumeContent) -> VolumeEntry {
        VolumeEntry { path: path.into(), mode: 0o755, uid: 0, gid: 0, content }
    }

    fn file(path: &str, length: usize) -> VolumeEntry {
        entry(path, VolumeContent::File(vec![0; length]))
    }

    fn dir(path: &str) -> VolumeEntry {
        entry(path, VolumeContent::Directory)
    }

    #[test]
    fn tree_whose_directories_come_first_is_taken() {
        let link = entry("..data", VolumeContent::Link("..1".into()));
        check(&[dir(""), dir("..1"), file("..1/key", MAX_BYTES), link]).unwrap();
    }

    #[test]
    fn a01_entries_that_lead_out_or_have_no_place_are_refused() {
        let odd_mode = VolumeEntry { mode: 0o10644, ..file("a", 1) };
        let no_target = entry("a", VolumeContent::Link(String::new()));
        let bad = [
            vec![],
            vec![file("", 1)],
            vec![dir("a")],
            vec![dir(""), file("../a", 1)],
            vec![dir(""), file("/a", 1)],
            vec![dir(""), file("a/../b", 1)],
            vec![dir(""), file("./a", 1)],
            vec![dir(""), file("a/", 1)],
            vec![dir(""), file("a\0", 1)],
            vec![dir(""), file("a/b", 1)],
            vec![dir(""), file("a", 1), file("a/b", 1)],
            vec![dir(""), file("a", 1), file("a", 1)],
            vec![dir(""), file("a", MAX_BYTES), file("b", 1)],
            vec![dir(""), file(&"a".repeat(256), 1)],
            vec![dir(""), odd_mode],
            vec![dir(""), no_target],
            std::iter::once(dir("")).chain((0..MAX_ENTRIES).map(|at| dir(&at.to_string()))).collect(),
        ];
        for entries in bad {
            assert!(check(&entries).is_err(), "{:?}", entries.last());
        }
    }

    proptest! {
        #[test]
        fn accepted_paths_stay_inside(path in "[./a\\x00]{0,12}") {
            if check(&[dir(""), dir("a"), file(&path, 1)]).is_ok() {
                prop_assert!(!path.starts_with('/') && !path.contains('\0'));
                prop_assert!(path.split('/').all(|part| !["", ".", ".."].contains(&part)));
            }
        }
    }
}
