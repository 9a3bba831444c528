//! A container's cgroup v2: `nacre/<id>` under the guest's root.
//!
//! | module | owns |
//! |---|---|
//! | this one | the cgroup: make, limit, kill, remove |
//! | [`freezer`] | who wants it to stand still |
//! | [`files`] | its files and directories by descriptor |
//! | [`resources`] | OCI `linux.resources` as lines for those files (pure) |
//! | [`devices`] | device rules as a BPF program (pure) |
//! | [`stats`] | the files' figures |
//!
//! The container is born in its cgroup (CLONE_INTO_CGROUP): moving a process costs an RCU grace period, and is done only
//! where it cannot be born there ([`SideCgroup::leave`]). What is below `nacre/<id>` belongs to the container and is hostile: listings and removal are bounded.

mod devices;
mod error;
mod files;
mod freezer;
mod resources;
mod stats;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nacre_protocol::rpc::agent::StatsReply;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::Timespec;

pub use error::CgroupError;
use files::{
    child_dirs, dir_flags, ensure_dir, field, field_text, file_error, read_at, remove_dir, write_at,
};
pub(crate) use freezer::Hold;
pub use resources::InvalidResources;
pub(crate) use resources::Resources;

/// Directory of all containers' cgroups.
const PARENT: &str = "nacre";
/// Controllers that every container has, for its figures.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// Longest file read: memory.stat has about 2 KiB, cgroup.procs up to 8 bytes a process.
const MAX_FILE: usize = 1 << 20;
/// Most processes of one listing, and most nested cgroups of a container.
const MAX_PIDS: usize = 65_536;
const MAX_NESTED: usize = 16_384;
/// How long a frozen or killed cgroup may take to settle.
const SETTLE: Duration = Duration::from_secs(10);

/// A container's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    /// `nacre` itself.
    parent: OwnedFd,
    name: String,
    dir: OwnedFd,
    /// The attached device program.
    devices: Mutex<Option<Arc<OwnedFd>>>,
    freezer: freezer::Freezer,
}

impl Cgroup {
    /// Makes `nacre/<name>` with its limits. Dropping the value leaves it; see [`Cgroup::remove`].
    ///
    /// # Errors
    /// [`CgroupError`]; nothing is left then.
    pub(crate) fn create(root: &Path, name: &str, resources: &Resources) -> Result<Self, CgroupError> {
        let parent = open_parent(root)?;
        enable_controllers(&parent, resources)?;
        mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map_err(file_error("make", name))?;
        let dir = match openat(&parent, name, dir_flags(), Mode::empty()) {
            Ok(dir) => dir,
            Err(error) => {
                let _ = unlinkat(&parent, name, AtFlags::REMOVEDIR);
                return Err(file_error("open", name)(error));
            }
        };
        let cgroup = Self {
            parent,
            name: name.to_owned(),
            dir,
            devices: Mutex::new(None),
            freezer: freezer::Freezer::default(),
        };
        if let Err(error) = cgroup.apply(resources) {
            let _ = unlinkat(&cgroup.parent, name, AtFlags::REMOVEDIR);
            return Err(error);
        }
        Ok(cgroup)
    }

    /// Lets no process in it use a device that `resources` does not allow. Not before the container's own nodes
    /// are made, which is the use of a device too.
    ///
    /// # Errors
    /// [`CgroupError::Devices`].
    pub(crate) fn restrict_devices(&self, resources: &Resources) -> Result<(), CgroupError> {
        self.set_devices(&resources.devices)
    }

    /// The directory, for CLONE_INTO_CGROUP.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Figures, named as the kernel's files are.
    ///
    /// # Errors
    /// [`CgroupError::File`] where a file that every cgroup has cannot be read.
    pub fn stats(&self) -> Result<StatsReply, CgroupError> {
        stats::read(self)
    }

    /// Changes limits: only those that `resources_json` names.
    ///
    /// # Errors
    /// [`CgroupError`]; values written before the one at fault stay.
    pub fn update(&self, resources_json: &[u8]) -> Result<(), CgroupError> {
        let resources = serde_json::from_slice(resources_json).map_err(CgroupError::Json)?;
        let resources = Resources::from_oci(&resources)?;
        if let Some(limit) = resources.checked_memory_limit {
            let used = self.read_number("memory.current")?;
            if used > limit {
                return Err(CgroupError::InUse { limit, used });
            }
        }
        enable_controllers(&self.parent, &resources)?;
        self.apply(&resources)?;
        if resources.devices.is_empty() {
            return Ok(());
        }
        self.set_devices(&resources.devices)
    }

    /// SIGKILL for every process, those being forked included.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn kill_all(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// A signal for every process that there is now.
    ///
    /// # Errors
    /// [`CgroupError`] where the processes cannot be listed.
    pub fn signal_all(&self, signal: Signal) -> Result<(), CgroupError> {
        for pid in self.pids()? {
            let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            // The pid may have been reaped and given to a process of somebody else before the pidfd was there.
            if self.holds(pid) {
                // ESRCH: it has ended meanwhile.
                let _ = pidfd_send_signal(&pidfd, signal);
            }
        }
        Ok(())
    }

    /// Whether a process is in this cgroup or below it.
    fn holds(&self, pid: Pid) -> bool {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())) else {
            return false;
        };
        text.lines().find_map(|line| self.relative(line.strip_prefix("0::")?)).is_some() || self.is(&text)
    }

    fn is(&self, text: &str) -> bool {
        let suffix = format!("/{PARENT}/{}", self.name);
        text.lines().any(|line| line.strip_prefix("0::").is_some_and(|path| path.ends_with(&suffix)))
    }

    /// The part of a `/proc/PID/cgroup` path that is below this cgroup; none where it is elsewhere or this one.
    pub(super) fn relative<'a>(&self, path: &'a str) -> Option<&'a str> {
        let (_, below) = path.split_once(&format!("/{PARENT}/{}/", self.name))?;
        (!below.is_empty()).then_some(below)
    }

    /// Pids of all processes, in nested cgroups too, as the agent sees them.
    ///
    /// # Errors
    /// [`CgroupError::TooMany`] above 65536 processes or 16384 cgroups.
    pub fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        for dir in self.nested()? {
            let text = match read_at(&dir.1, "cgroup.procs") {
                Ok(text) => text,
                // Removed meanwhile, or threaded: the processes of a threaded cgroup are listed above it.
                Err(Errno::NODEV | Errno::NOENT | Errno::OPNOTSUPP) => continue,
                Err(error) => return Err(file_error("read", "cgroup.procs")(error)),
            };
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            if pids.len() > MAX_PIDS {
                return Err(CgroupError::TooMany(MAX_PIDS, "processes"));
            }
        }
        Ok(pids)
    }

    /// Processes that the memory limit has killed, nested cgroups included.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        Ok(field(&self.read("memory.events")?, "oom_kill").unwrap_or(0))
    }

    /// `memory.events`, which is ready for POLLPRI when it changes.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn memory_events(&self) -> Result<File, CgroupError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat(&self.dir, "memory.events", flags, Mode::empty())
            .map(File::from)
            .map_err(file_error("open", "memory.events"))
    }

    /// Kills what is left and removes the directory and all below it. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`CgroupError::Timeout`] where a process does not die.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        match self.kill_all() {
            // Removed before: the open directory has no files any more.
            Err(CgroupError::NoSuchFile(_)) => return Ok(()),
            other => other?,
        }
        self.wait_for("populated", "0", "empty")?;
        // Parents come before their children in the list.
        for (parent, dir, name) in self.nested_with_parents()?.into_iter().rev() {
            drop(dir);
            match parent {
                Some(parent) => remove_dir(&parent, &name)?,
                None => remove_dir(&self.parent, &self.name)?,
            }
        }
        Ok(())
    }

    fn nested(&self) -> Result<Vec<(String, OwnedFd)>, CgroupError> {
        Ok(self.nested_with_parents()?.into_iter().map(|(_, dir, name)| (name, dir)).collect())
    }

    /// This cgroup and all below it, parents first.
    fn nested_with_parents(&self) -> Result<Vec<(Option<OwnedFd>, OwnedFd, String)>, CgroupError> {
        let copy =
            |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(file_error("open", "directory"));
        let mut all = vec![(None, copy(&self.dir)?, self.name.clone())];
        let mut at = 0;
        while let Some((_, dir, _)) = all.get(at) {
            let children = child_dirs(dir)?;
            let mut found = Vec::new();
            for name in children {
                match openat(dir, name.as_str(), dir_flags(), Mode::empty()) {
                    Ok(child) => found.push((Some(copy(dir)?), child, name)),
                    // Removed meanwhile.
                    Err(Errno::NOENT | Errno::NODEV) => {}
                    Err(error) => return Err(file_error("open", &name)(error)),
                }
            }
            all.extend(found);
            at += 1;
            if all.len() > MAX_NESTED {
                return Err(CgroupError::TooMany(MAX_NESTED, "cgroups"));
            }
        }
        Ok(all)
    }

    fn apply(&self, resources: &Resources) -> Result<(), CgroupError> {
        resources.writes.iter().try_for_each(|(file, value)| self.write(file, value))?;
        let Some(weight) = &resources.io_weight else { return Ok(()) };
        // Which of the two there is depends on the scheduler of the guest kernel's block devices.
        for (file, lines) in [("io.bfq.weight", &weight.bfq), ("io.weight", &weight.io)] {
            match lines.iter().try_for_each(|line| self.write(file, line)) {
                Err(CgroupError::NoSuchFile(_)) => {}
                other => return other,
            }
        }
        Err(CgroupError::NoSuchFile("io.weight".into()))
    }

    /// Puts the new program there before the old one goes, so that no moment is without one.
    fn set_devices(&self, rules: &[devices::Rule]) -> Result<(), CgroupError> {
        let new = devices::load(rules).map_err(CgroupError::Devices)?;
        let mut attached = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        // Equal rules are one program, which the kernel does not attach twice.
        if attached.as_ref().is_some_and(|old| Arc::ptr_eq(old, &new)) {
            return Ok(());
        }
        nacre_bpf::attach_device_program(&self.dir, &*new).map_err(CgroupError::Devices)?;
        if let Some(old) = attached.replace(new) {
            nacre_bpf::detach_device_program(&self.dir, &*old).map_err(CgroupError::Devices)?;
        }
        Ok(())
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        read_at(&self.dir, file).map_err(file_error("read", file))
    }

    fn read_number(&self, file: &str) -> Result<u64, CgroupError> {
        let text = self.read(file)?;
        Ok(text.trim().parse().unwrap_or(u64::MAX))
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        write_at(&self.dir, file, value)
    }

    /// Waits until a field of cgroup.events has a value.
    fn wait_for(&self, name: &str, value: &str, state: &'static str) -> Result<(), CgroupError> {
        self.wait_until(name, value, state, Instant::now() + SETTLE)
    }

    fn wait_until(
        &self,
        name: &str,
        value: &str,
        state: &'static str,
        deadline: Instant,
    ) -> Result<(), CgroupError> {
        let gone = |action| {
            move |error| match error {
                Errno::NOENT | Errno::NODEV => CgroupError::NoSuchFile("cgroup.events".into()),
                error => file_error(action, "cgroup.events")(error),
            }
        };
        let events = openat(&self.dir, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(gone("open"))?;
        loop {
            let mut buffer = [0; 256];
            let length = rustix::io::pread(&events, &mut buffer, 0).map_err(gone("read"))?;
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            if field_text(&text, name) == Some(value) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::Timeout(state));
            }
            let left = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&events, PollFlags::PRI)], left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(file_error("poll", "cgroup.events")(error)),
            }
        }
    }
}

/// A cgroup beside those of containers. Dropping it ends who is in it.
#[derive(Debug)]
pub(crate) struct SideCgroup(Cgroup);

impl SideCgroup {
    /// For a process that cannot be born in its container's, since that stands still.
    ///
    /// # Errors
    /// [`CgroupError`]; nothing is left then.
    pub(crate) fn create(root: &Path) -> Result<Self, CgroupError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // No id of a container has a sign like this.
        let name = format!("+{}", COUNT.fetch_add(1, Ordering::Relaxed));
        Cgroup::create(root, &name, &Resources::default()).map(Self)
    }

    /// For a process that uses no device.
    ///
    /// # Errors
    /// [`CgroupError`]; nothing is left then.
    pub(crate) fn without_devices(root: &Path) -> Result<Self, CgroupError> {
        let cgroup = Self::create(root)?;
        cgroup.0.set_devices(&[])?;
        Ok(cgroup)
    }

    /// The directory, for CLONE_INTO_CGROUP.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.0.dir()
    }

    /// Moves a process to the first of some cgroups that takes one.
    ///
    /// # Errors
    /// [`CgroupError::File`] where none does.
    pub(crate) fn leave(self, pid: u32, to: &[OwnedFd]) -> Result<(), CgroupError> {
        let pid = pid.to_string();
        let mut moved = Err(CgroupError::NoSuchFile("cgroup.procs".into()));
        for dir in to {
            moved = write_at(dir, "cgroup.procs", &pid);
            if moved.is_ok() {
                break;
            }
        }
        moved
    }
}

impl Drop for SideCgroup {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            tracing::warn!(error = &error as &dyn std::error::Error, "a cgroup of a creation stays");
        }
    }
}

/// Makes the directory of all containers with its controllers.
///
/// # Errors
/// [`CgroupError`].
pub(crate) fn warm_up(root: &Path) -> Result<(), CgroupError> {
    enable_controllers(&open_parent(root)?, &Resources::default())
}

fn open_parent(root: &Path) -> Result<OwnedFd, CgroupError> {
    let root = openat(CWD, root, dir_flags(), Mode::empty()).map_err(file_error("open", "root"))?;
    ensure_dir(&root, PARENT)?;
    openat(&root, PARENT, dir_flags(), Mode::empty()).map_err(file_error("open", PARENT))
}

/// Enables the controllers that every container has and those that `resources` writes to, where the kernel has
/// them and they are not enabled yet.
fn enable_controllers(parent: &OwnedFd, resources: &Resources) -> Result<(), CgroupError> {
    let read = |file| read_at(parent, file).map_err(file_error("read", file));
    let enabled = read("cgroup.subtree_control")?;
    let wanted = CONTROLLERS.into_iter().chain(resources.controllers());
    let missing: Vec<&str> = wanted.filter(|name| !has_word(&enabled, name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let available = read("cgroup.controllers")?;
    let mut line = String::new();
    for name in missing {
        if has_word(&available, name) && !line.contains(name) {
            line.push('+');
            line.push_str(name);
            line.push(' ');
        }
    }
    if line.is_empty() { Ok(()) } else { write_at(parent, "cgroup.subtree_control", line.trim_end()) }
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_ascii_whitespace().any(|other| other == word)
}
