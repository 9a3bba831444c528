//! What nacre has on the machine at a moment: a container that is gone must leave none of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Names that nacre's processes have (`/proc/PID/comm` holds 15 bytes).
const PROCESSES: &[&str] = &["nacre-vmm", "nacre-fs", "containerd-shim", "nacre-oci"];

/// Directories below which nacre keeps sockets and state.
const STATE: &[&str] = &["/run/nacre", "/run/containerd/s"];

/// Directories in there that all sandboxes share, and that stay: one that ends must not take them from one that begins.
const SHARED: &[&str] = &["/run/nacre/s", "/run/nacre/jail"];

/// A shim may still be on its last steps when its caller has its answer.
const SETTLE: Duration = Duration::from_secs(10);

/// Everything found, each as one line of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// What is there now.
    pub fn now() -> Self {
        let mut found = BTreeSet::new();
        for name in PROCESSES {
            found.extend(pids(name).into_iter().map(|pid| format!("process {pid} {name}")));
        }
        for line in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines() {
            found.insert(format!("mount {line}"));
        }
        for dir in STATE {
            files(Path::new(dir), "file", &mut found);
        }
        cgroups(Path::new("/sys/fs/cgroup"), &mut found);
        for link in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
            found.insert(format!("link {}", link.file_name().to_string_lossy()));
        }
        Self(found)
    }

    /// Waits until nothing is there that was not there before.
    ///
    /// # Panics
    /// Where something still is after ten seconds, naming it.
    #[track_caller]
    pub fn assert_nothing_new(&self) {
        let left = self.left_behind();
        assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    }

    /// What is there now and was not before, once ten seconds were given to end it.
    pub fn left_behind(&self) -> Vec<String> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let left = self.new_since();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn new_since(&self) -> Vec<String> {
        Self::now().0.difference(&self.0).cloned().collect()
    }
}

/// Numbers of the processes whose name begins with this.
pub fn pids(name: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else { continue };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.starts_with(name) {
            found.insert(pid);
        }
    }
    found
}

fn files(dir: &Path, kind: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            files(&path, kind, found);
        }
        if !SHARED.iter().any(|shared| path == Path::new(shared)) {
            found.insert(format!("{kind} {}", path.display()));
        }
    }
}

/// Only directories: the files in them come and go with their cgroup.
fn cgroups(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.insert(format!("cgroup {}", entry.path().display()));
            cgroups(&entry.path(), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_trace_is_told() {
        let before = Traces(BTreeSet::new());
        assert!(!before.new_since().is_empty(), "at least the root mount is new to an empty list");
    }
}
