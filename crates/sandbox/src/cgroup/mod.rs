//! The host's cgroup of a sandbox: its VMM and file server, and the sum of what they may use (H09).
//!
//! Version 2, version 1 and both at once. On version 2 a process is born in its group (clone3); the hierarchies of
//! version 1 are joined by writing `cgroup.procs` while the process still waits for its first message, before it has
//! a second thread. Dropping the [`Cgroup`] removes the directories; its processes are gone by then.
//!
//! Directories above the group are shared: containers of a containerd namespace have one, and so have those that
//! `nacre` runs. One that a sandbox made is marked, and goes with the last sandbox in it, whoever made it; one that was
//! there before (a kubelet's, a service manager's) is not marked and stays.

mod layout;

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use layout::{Hierarchy, Version, detect};

use crate::plan::CgroupPlan;
use crate::plan::resources::{CpuMax, DEFAULT_PERIOD_US};

/// Controllers of version 2 that are switched on for the group.
const V2_CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "cpuset"];

/// The mark of a directory above a group that a sandbox made: mkdir(2) sets it with the directory, so nobody finds one
/// that has no mark yet, and it needs no attributes, which not every hierarchy has. The kernel takes it as any
/// directory's sticky bit: root and the owner are free of it, and nobody else may write there.
const MADE: u32 = 0o1000;

/// How often a group is tried for whose parents others take away. Each time, a sandbox must end between two system calls.
const TRIES: usize = 100;

/// A cgroup that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The mounts cannot be read.
    #[error("cannot find the cgroup hierarchies")]
    Detect(#[source] io::Error),
    /// The directory cannot be made.
    #[error("cannot create cgroup {path}; it needs root and a writable cgroup file system")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A limit is refused.
    #[error("cannot write {value} to {path}")]
    Limit {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// A process cannot be moved.
    #[error("cannot move process {pid} to cgroup {path}")]
    Join {
        /// The process.
        pid: u32,
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A group in every hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    groups: Vec<Group>,
    birthplace: Option<File>,
}

#[derive(Debug)]
struct Group {
    dir: PathBuf,
    version: Version,
    /// Directories above it that a sandbox made, the nearest first: removed with it where nothing else is in them.
    ancestors: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes the group and sets every limit but the CPU bandwidth, which would slow the boot down; see
    /// [`Self::limit_cpu`]. None where the plan has no path.
    ///
    /// # Errors
    /// See [`CgroupError`].
    pub fn create(plan: &CgroupPlan) -> Result<Option<Self>, CgroupError> {
        let Some(path) = &plan.path else { return Ok(None) };
        let hierarchies = detect().map_err(CgroupError::Detect)?;
        Self::create_in(&hierarchies, path, plan).map(Some)
    }

    fn create_in(hierarchies: &[Hierarchy], path: &str, plan: &CgroupPlan) -> Result<Self, CgroupError> {
        // Built up inside the value whose drop takes it down again.
        let mut cgroup = Self { groups: Vec::new(), birthplace: None };
        for hierarchy in hierarchies {
            cgroup.groups.push(make_group(hierarchy, path)?);
        }
        for group in &cgroup.groups {
            group.limit(plan)?;
        }
        if let Some(group) = cgroup.groups.iter().find(|group| group.version == Version::V2) {
            let open = File::open(&group.dir);
            cgroup.birthplace =
                Some(open.map_err(|source| CgroupError::Create { path: group.dir.clone(), source })?);
        }
        Ok(cgroup)
    }

    /// The version 2 directory, for clone3.
    pub fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        self.birthplace.as_ref().map(AsFd::as_fd)
    }

    /// Moves a process that was born in [`Self::birthplace`] into the hierarchies of version 1.
    ///
    /// # Errors
    /// [`CgroupError::Join`].
    pub fn join(&self, pid: u32) -> Result<(), CgroupError> {
        for group in self.groups.iter().filter(|group| group.version != Version::V2) {
            let path = group.dir.join("cgroup.procs");
            fs::write(&path, pid.to_string()).map_err(|source| CgroupError::Join {
                pid,
                path: group.dir.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Sets, changes or (with none) lifts the CPU bandwidth.
    ///
    /// # Errors
    /// [`CgroupError::Limit`].
    pub fn limit_cpu(&self, max: Option<CpuMax>) -> Result<(), CgroupError> {
        let period = max.map_or(DEFAULT_PERIOD_US, |max| max.period_us);
        for group in &self.groups {
            if group.has("cpu") {
                match group.version {
                    Version::V2 => {
                        let quota = max.map_or("max".to_owned(), |max| max.quota_us.to_string());
                        group.write("cpu.max", &format!("{quota} {period}"))?;
                    }
                    Version::V1(_) => {
                        group.write("cpu.cfs_period_us", &period.to_string())?;
                        let quota = max.map_or("-1".to_owned(), |max| max.quota_us.to_string());
                        group.write("cpu.cfs_quota_us", &quota)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Directories that the drop removes, for the record on disk.
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.groups
            .iter()
            .flat_map(|group| std::iter::once(&group.dir).chain(&group.ancestors).cloned())
            .collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.dirs());
    }
}

/// Removes group directories, each before its parents, where nothing is in them any more.
pub fn remove(dirs: &[PathBuf]) {
    for dir in dirs {
        // A group of version 1 is busy for a moment after its last process was reaped.
        for attempt in 0..20 {
            match fs::remove_dir(dir) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy && !has_children(dir) => {
                    std::thread::sleep(Duration::from_millis(1 << attempt.min(5)));
                }
                _ => break,
            }
        }
    }
}

fn has_children(dir: &Path) -> bool {
    fs::read_dir(dir)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())))
}

fn make_group(hierarchy: &Hierarchy, path: &str) -> Result<Group, CgroupError> {
    let dir = hierarchy.mount.join(path);
    let mut above: Vec<PathBuf> = dir.ancestors().skip(1).map(Path::to_owned).collect();
    above.truncate(path.split('/').count());
    // The mount point, which is last, is nobody's to make or remove.
    let parents = &above[..above.len() - 1];
    let made = make_dirs(parents, &dir);
    let ancestors: Vec<PathBuf> = parents.iter().filter(|parent| is_marked(parent)).cloned().collect();
    if let Err(error) = made {
        remove(&ancestors);
        return Err(error);
    }
    // Only now: a parent that is empty could be another one a moment later, with no controller on.
    if hierarchy.version == Version::V2 {
        above.iter().rev().for_each(|dir| enable_controllers(dir));
    }
    Ok(Group { dir, version: hierarchy.version.clone(), ancestors })
}

/// Makes a group below its parents, the nearest of which is first; those that are there are taken as they are.
fn make_dirs(parents: &[PathBuf], dir: &Path) -> Result<(), CgroupError> {
    let make_all = || {
        parents.iter().rev().try_for_each(|parent| make_dir(parent, 0o755 | MADE))?;
        make_dir(dir, 0o755)
    };
    for _ in 1..TRIES {
        match make_all() {
            // The last sandbox in a parent has just removed it.
            Err(CgroupError::Create { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            result => return result,
        }
    }
    make_all()
}

fn make_dir(path: &Path, mode: u32) -> Result<(), CgroupError> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            Err(CgroupError::Create { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn is_marked(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|found| found.is_dir() && found.mode() & MADE != 0)
}

/// Best effort: what is missing shows when a limit cannot be written.
fn enable_controllers(dir: &Path) {
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let (available, enabled) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    let has = |list: &str, controller: &str| list.split_whitespace().any(|word| word == controller);
    for controller in V2_CONTROLLERS {
        if has(&available, controller) && !has(&enabled, controller) {
            let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

impl Group {
    fn limit(&self, plan: &CgroupPlan) -> Result<(), CgroupError> {
        let v2 = self.version == Version::V2;
        if self.has("memory") {
            let name = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
            self.write(name, &plan.memory_max_bytes.to_string())?;
        }
        if self.has("pids") {
            self.write("pids.max", &plan.pids_max.to_string())?;
        }
        match plan.cpu_shares {
            Some(shares) if self.has("cpu") && v2 => {
                self.write("cpu.weight", &cpu_weight(shares).to_string())
            }
            Some(shares) if self.has("cpu") => self.write("cpu.shares", &shares.to_string()),
            _ => Ok(()),
        }
    }

    /// Whether the group has a controller's files.
    fn has(&self, controller: &str) -> bool {
        match &self.version {
            Version::V1(controllers) => controllers.iter().any(|known| known == controller),
            Version::V2 => fs::read_to_string(self.dir.join("cgroup.controllers"))
                .is_ok_and(|list| list.split_whitespace().any(|word| word == controller)),
        }
    }

    fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.dir.join(name);
        fs::write(&path, value).map_err(|source| CgroupError::Limit { path, value: value.to_owned(), source })
    }
}

/// `cpu.shares` (2 to 262144) as `cpu.weight` (1 to 10000), as the OCI runtimes convert it.
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a hierarchy of version 1: writes go to plain files.
    fn fake(dir: &Path, controllers: &[&str]) -> Hierarchy {
        let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        Hierarchy { mount: dir.to_owned(), version: Version::V1(controllers) }
    }

    fn plan() -> CgroupPlan {
        CgroupPlan {
            path: None,
            memory_max_bytes: 1 << 28,
            pids_max: 100,
            cpu_max: None,
            cpu_shares: Some(512),
        }
    }

    #[test]
    fn limits_are_written_where_the_controller_is() {
        let (memory, cpu) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let hierarchies = [fake(memory.path(), &["memory"]), fake(cpu.path(), &["cpu", "pids"])];
        let cgroup = Cgroup::create_in(&hierarchies, "default/web", &plan()).unwrap();
        let read = |dir: &Path, name: &str| fs::read_to_string(dir.join("default/web").join(name)).ok();
        assert_eq!(read(memory.path(), "memory.limit_in_bytes").as_deref(), Some("268435456"));
        assert_eq!(read(memory.path(), "pids.max"), None);
        assert_eq!(read(cpu.path(), "pids.max").as_deref(), Some("100"));
        assert_eq!(read(cpu.path(), "cpu.shares").as_deref(), Some("512"));
        cgroup.limit_cpu(Some(CpuMax { quota_us: 50_000, period_us: 100_000 })).unwrap();
        assert_eq!(read(cpu.path(), "cpu.cfs_quota_us").as_deref(), Some("50000"));
        cgroup.limit_cpu(None).unwrap();
        assert_eq!(read(cpu.path(), "cpu.cfs_quota_us").as_deref(), Some("-1"));
    }

    #[test]
    fn made_parents_go_with_the_group_and_found_ones_stay() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("default")).unwrap();
        let hierarchies = [fake(root.path(), &["freezer"])];
        let found = Cgroup::create_in(&hierarchies, "default/web", &plan()).unwrap();
        let made = Cgroup::create_in(&hierarchies, "other/deep/web", &plan()).unwrap();
        drop((found, made));
        assert!(root.path().join("default").is_dir());
        assert!(!root.path().join("default/web").exists());
        assert!(!root.path().join("other").exists());
    }

    #[test]
    fn made_parent_goes_with_its_last_sandbox_whoever_made_it() {
        let root = tempfile::tempdir().unwrap();
        let hierarchies = [fake(root.path(), &["freezer"])];
        let maker = Cgroup::create_in(&hierarchies, "stress/one", &plan()).unwrap();
        let other = Cgroup::create_in(&hierarchies, "stress/two", &plan()).unwrap();
        drop(maker);
        assert!(root.path().join("stress/two").is_dir());
        drop(other);
        assert!(!root.path().join("stress").exists());
    }

    #[test]
    fn sandboxes_that_begin_and_end_at_once_leave_nothing_and_do_not_fail() {
        let root = tempfile::tempdir().unwrap();
        let hierarchies = [fake(root.path(), &["freezer"])];
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let hierarchies = &hierarchies;
                scope.spawn(move || {
                    for _ in 0..250 {
                        let path = format!("stress/deep/{thread}");
                        drop(Cgroup::create_in(hierarchies, &path, &plan()).unwrap());
                    }
                });
            }
        });
        assert!(fs::read_dir(root.path()).unwrap().next().is_none());
    }

    #[test]
    fn failed_create_leaves_no_directory() {
        let (good, bad) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(bad.path().join("default"), "a file in the way").unwrap();
        let hierarchies = [fake(good.path(), &["memory"]), fake(bad.path(), &["cpu"])];
        assert!(Cgroup::create_in(&hierarchies, "default/web", &plan()).is_err());
        assert!(!good.path().join("default").exists());
    }

    #[test]
    fn shares_and_weights_meet_at_both_ends() {
        assert_eq!(
            (cpu_weight(0), cpu_weight(2), cpu_weight(1024), cpu_weight(u64::MAX)),
            (1, 1, 39, 10_000)
        );
    }
}
