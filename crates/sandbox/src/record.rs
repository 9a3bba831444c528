//! A sandbox's directory on the host, and the record there of what has to go when its shim is dead.
//!
//! ```text
//! /run/nacre/                       0700
//!   s/<hash>, s/<hash>.shim         sockets of the shims' Task API, and who serves each (module of the shim)
//!   jail/<uid>                      user ids in use
//!   <namespace>/<id>/               0700, while the sandbox lives
//!     state.json                    the record
//!     vsock                         where streams to the guest are asked for
//! ```
//!
//! A shim that ends in order removes everything itself. After a shim that died, `delete` reads the record and
//! does it: processes (told from others that got their PID by their start time), mounts, cgroups, files.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nacre_protocol::id::ContainerId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Where sandboxes of root are kept.
pub const RUN_DIR: &str = "/run/nacre";

/// Name of the record.
const RECORD: &str = "state.json";

/// For a killed process to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A sandbox's directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is no place for an ordinary user's sandboxes.
    #[error("XDG_RUNTIME_DIR is not set: no place to keep a sandbox's state without root")]
    NoRunDir,
    /// A directory cannot be made.
    #[error("cannot create {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else could write there.
    #[error("{path} belongs to another user, or others may use it")]
    Unsafe {
        /// The directory.
        path: PathBuf,
    },
    /// A sandbox of this name is there.
    #[error("sandbox {id} exists in namespace {namespace}")]
    Exists {
        /// Its namespace.
        namespace: ContainerId,
        /// Its id.
        id: ContainerId,
    },
    /// The record cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The record.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The record cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The record.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A process, told from a later one with the same PID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Its PID.
    pub pid: u32,
    /// When it started, in ticks since the boot (proc_pid_stat(5), field 22).
    pub started: u64,
}

/// What a dead shim would leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The shim.
    pub shim: ProcessRef,
    /// The VMM and the file server.
    #[serde(default)]
    pub children: Vec<ProcessRef>,
    /// Mount points, in the order of their mounting.
    #[serde(default)]
    pub mounts: Vec<PathBuf>,
    /// cgroup directories, each before its parents.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// Other files: the socket of the Task API, the lock of the user id.
    #[serde(default)]
    pub files: Vec<PathBuf>,
}

/// The directory of a sandbox. Dropping it removes it.
#[derive(Debug)]
pub struct SandboxDir {
    path: PathBuf,
}

/// `/run/nacre` for root, else a directory of the user's own.
///
/// # Errors
/// [`RecordError::NoRunDir`].
pub fn run_dir() -> Result<PathBuf, RecordError> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from(RUN_DIR));
    }
    let dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute());
    Ok(Path::new(&dir.ok_or(RecordError::NoRunDir)?).join("nacre"))
}

/// Makes a directory that only this user may enter, or checks that it is one.
///
/// # Errors
/// See [`RecordError`].
pub fn private_dir(path: &Path) -> Result<(), RecordError> {
    let failed = |source| RecordError::Create { path: path.to_owned(), source };
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let found = fs::symlink_metadata(path).map_err(failed)?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Err(RecordError::Unsafe { path: path.to_owned() });
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

impl SandboxDir {
    /// Makes the directory. One that a dead shim left is cleaned up first.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn create(run_dir: &Path, namespace: &ContainerId, id: &ContainerId) -> Result<Self, RecordError> {
        let parent = run_dir.join(namespace.as_str());
        let path = parent.join(id.as_str());
        private_dir(run_dir)?;
        private_dir(&parent)?;
        for _ in 0..2 {
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(source) => return Err(RecordError::Create { path, source }),
            }
            if read(&path)?.is_some_and(|record| record.shim.is_alive()) {
                break;
            }
            clean_up(run_dir, namespace, id)?;
        }
        Err(RecordError::Exists { namespace: namespace.clone(), id: id.clone() })
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// [`RecordError::Write`].
    pub fn write(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path.join(RECORD);
        let failed = |source| RecordError::Write { path: path.clone(), source };
        let text = serde_json::to_vec(record).map_err(io::Error::from).map_err(failed)?;
        let new = self.path.join("state.json.new");
        let options = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new);
        options.and_then(|mut file| file.write_all(&text)).map_err(failed)?;
        fs::rename(&new, &path).map_err(failed)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where streams to the guest are asked for.
    pub fn vsock(&self) -> PathBuf {
        self.path.join("vsock")
    }
}

impl Drop for SandboxDir {
    fn drop(&mut self) {
        remove_dir(&self.path);
    }
}

/// Removes a sandbox's directory, and its namespace's when that is empty.
fn remove_dir(path: &Path) {
    let _ = fs::remove_dir_all(path);
    if let Some(parent) = path.parent() {
        let _ = fs::remove_dir(parent);
    }
}

/// Takes down whatever a dead shim left; nothing where there is nothing.
///
/// # Errors
/// [`RecordError::Read`] for a record that is damaged.
pub fn clean_up(
    run_dir: &Path,
    namespace: &ContainerId,
    id: &ContainerId,
) -> Result<Option<Record>, RecordError> {
    let path = run_dir.join(namespace.as_str()).join(id.as_str());
    let record = read(&path)?;
    if let Some(record) = &record {
        // The shim first: it would put things back.
        for process in std::iter::once(&record.shim).chain(&record.children) {
            process.kill();
        }
        crate::storage::take_down(&record.mounts);
        crate::cgroup::remove(&record.cgroups);
        for file in &record.files {
            let _ = fs::remove_file(file);
        }
    }
    remove_dir(&path);
    Ok(record)
}

fn read(dir: &Path) -> Result<Option<Record>, RecordError> {
    let path = dir.join(RECORD);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| RecordError::Read { path, source: error.into() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordError::Read { path, source }),
    }
}

impl ProcessRef {
    /// The process that has this PID now.
    pub fn of(pid: u32) -> Self {
        Self { pid, started: start_time(pid).unwrap_or(0) }
    }

    /// This process.
    pub fn own() -> Self {
        Self::of(std::process::id())
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid).is_some_and(|started| started == self.started)
    }

    /// Kills it and waits until it is gone; never itself.
    pub fn kill(&self) {
        let Some(pidfd) = self.open().filter(|_| self.pid != std::process::id()) else { return };
        if pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
            let timeout = Timespec { tv_sec: KILL_TIMEOUT.as_secs().cast_signed(), tv_nsec: 0 };
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
        }
    }

    fn open(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The pidfd is opened first: what the start time then says is true of it.
        self.is_alive().then_some(pidfd)
    }
}

/// Field 22 of `/proc/PID/stat`; the name in field 2 may hold anything, so counting begins after its end. A zombie
/// counts as gone.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> (ContainerId, ContainerId) {
        ("default".parse().unwrap(), "web".parse().unwrap())
    }

    fn record(shim: ProcessRef) -> Record {
        Record { shim, children: vec![], mounts: vec![], cgroups: vec![], files: vec![] }
    }

    #[test]
    fn h08_directories_are_for_their_owner_alone() {
        let run = tempfile::tempdir().unwrap();
        let (namespace, id) = names();
        let dir = SandboxDir::create(&run.path().join("nacre"), &namespace, &id).unwrap();
        dir.write(&record(ProcessRef::own())).unwrap();
        for (path, mode) in [(dir.path().to_owned(), 0o700), (dir.path().join(RECORD), 0o600)] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, mode);
        }
        assert_eq!(fs::metadata(run.path().join("nacre/default")).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn h08_directory_that_was_open_to_others_is_closed() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path().join("nacre");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        private_dir(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn v05_link_in_the_place_of_a_directory_is_refused() {
        let run = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/tmp", run.path().join("nacre")).unwrap();
        assert!(matches!(private_dir(&run.path().join("nacre")), Err(RecordError::Unsafe { .. })));
    }

    #[test]
    fn dropped_directory_leaves_nothing() {
        let run = tempfile::tempdir().unwrap();
        let (namespace, id) = names();
        let dir = SandboxDir::create(run.path(), &namespace, &id).unwrap();
        dir.write(&record(ProcessRef::own())).unwrap();
        drop(dir);
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
    }

    #[test]
    fn sandbox_with_a_living_shim_is_not_made_twice() {
        let run = tempfile::tempdir().unwrap();
        let (namespace, id) = names();
        let dir = SandboxDir::create(run.path(), &namespace, &id).unwrap();
        dir.write(&record(ProcessRef::own())).unwrap();
        let again = SandboxDir::create(run.path(), &namespace, &id);
        assert!(matches!(again, Err(RecordError::Exists { .. })));
    }

    #[test]
    fn what_a_dead_shim_left_is_taken_down() {
        let run = tempfile::tempdir().unwrap();
        let (namespace, id) = names();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let socket = run.path().join("socket");
        fs::write(&socket, "").unwrap();
        let dir = SandboxDir::create(run.path(), &namespace, &id).unwrap();
        let mut left = record(ProcessRef { pid: u32::MAX >> 2, started: 1 });
        left.children.push(ProcessRef::of(child.id()));
        left.files.push(socket.clone());
        dir.write(&left).unwrap();
        std::mem::forget(dir);

        assert_eq!(clean_up(run.path(), &namespace, &id).unwrap(), Some(left));
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
        assert!(!socket.exists() && !run.path().join("default").exists());
        assert_eq!(clean_up(run.path(), &namespace, &id).unwrap(), None);
    }

    #[test]
    fn process_with_a_reused_pid_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let other = ProcessRef { started: ProcessRef::of(child.id()).started + 1, pid: child.id() };
        other.kill();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
