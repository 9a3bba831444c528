//! What files were like when a guest last opened them: whether it may keep the pages that it has of one.
//!
//! A guest drops its pages of a file with each open, unless it is told to keep them (`FOPEN_KEEP_CACHE`). It is told so where
//! the file has not changed since its last open, so it reads a program once and not with every exec, and sees with each open
//! what the host has written until then (close-to-open consistency, as NFS has it). Only files of root file systems are looked at.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use fuse_backend_rs::abi::fuse_abi::stat64;

/// Files that are remembered. A guest chooses the numbers, so they are hashed by nothing: two of the same remainder push each
/// other out, and cost that guest a read.
const SLOTS: usize = 1024;

/// A change within this time of another may leave no trace. Clocks of file systems tick; and a page that was changed by a mapping can be
/// changed again until it is written back, by default after some 35 seconds (`vm.dirty_expire_centisecs`).
const SETTLED_S: i64 = 60;

/// What changes with a file's content. `ctime` cannot be set back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Version {
    inode: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The files that were opened last.
#[derive(Debug)]
pub(crate) struct Versions(Mutex<Box<[Version]>>);

impl Versions {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(vec![Version::default(); SLOTS].into_boxed_slice()))
    }

    /// Notes that a file is opened which is like this now; whether it is as it was at the last open, and so are the pages that were
    /// read since.
    pub(crate) fn note(&self, inode: u64, stat: &stat64) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
        let modified = (stat.st_mtime, stat.st_mtime_nsec);
        let changed = (stat.st_ctime, stat.st_ctime_nsec);
        self.note_at(Version { inode, size: stat.st_size, modified, changed }, now)
    }

    fn note_at(&self, version: Version, now: i64) -> bool {
        let inode = version.inode;
        // What is remembered must be a version that no later change can look like.
        let settled = version.modified.0.max(version.changed.0) < now.saturating_sub(SETTLED_S);
        let version = if settled { version } else { Version::default() };
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = slots.get_mut(inode as usize % SLOTS) else { return false };
        let before = std::mem::replace(slot, version);
        settled && before == version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(inode: u64, size: i64, second: i64, nanosecond: i64) -> Version {
        Version { inode, size, modified: (1, 0), changed: (second, nanosecond) }
    }

    #[test]
    fn file_is_unchanged_only_as_it_was_at_its_last_open() {
        let versions = Versions::new();
        let first = version(7, 10, 100, 5);
        assert!(!versions.note_at(first, 1000), "nothing is known of it");
        assert!(versions.note_at(first, 1000));
        assert!(versions.note_at(first, 1001));
        for changed in [version(7, 11, 100, 5), version(7, 11, 101, 5), version(7, 11, 101, 6)] {
            assert!(!versions.note_at(changed, 1002));
            assert!(versions.note_at(changed, 1003));
        }
        assert!(!versions.note_at(first, 1004), "what it once was");
        assert!(!versions.note_at(version(8, 10, 100, 5), 1004), "another file");
    }

    #[test]
    fn change_of_a_moment_ago_may_hide_another() {
        let versions = Versions::new();
        let young = version(7, 10, 100, 5);
        for now in [0, 99, 100, 101, 160] {
            assert!(!versions.note_at(young, now), "at {now}");
        }
        assert!(!versions.note_at(young, 161), "its content at the last open is not known for sure");
        assert!(versions.note_at(young, 162));
        // A moment in which it was young is not forgotten.
        assert!(!versions.note_at(version(7, 10, 164, 5), 164));
        assert!(!versions.note_at(young, 300));
    }

    #[test]
    fn files_that_push_each_other_out_are_read_again() {
        let versions = Versions::new();
        let (one, other) = (version(5, 10, 100, 5), version(5 + SLOTS as u64, 10, 100, 5));
        assert!(!versions.note_at(one, 1000));
        assert!(!versions.note_at(other, 1000));
        assert!(!versions.note_at(one, 1000));
        assert!(versions.note_at(one, 1000));
    }
}
