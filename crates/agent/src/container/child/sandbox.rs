//! The namespaces of a sandbox whose containers are in a user namespace: the launcher makes them, and all that it forks is in
//! them.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Signal, WaitOptions, pidfd_send_signal, set_parent_process_death_signal, waitpid};
use rustix::thread::move_into_link_name_space;

use super::error::StepError;
use super::stage::write_map;
use crate::container::plan::IdMap;
use crate::container::sys::clone::{Fork, Forked, fork};

/// The user namespace first; it owns the others.
const KINDS: [&str; 4] = ["user", "net", "ipc", "uts"];

const FLAGS: u64 =
    (libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;

/// Makes them, and enters all but the user namespace: this process stays the guest's root. Their files, as [`KINDS`] has
/// them.
pub(super) fn make(uid_map: &[IdMap], gid_map: &[IdMap]) -> Result<Vec<OwnedFd>, StepError> {
    let what = Fork { namespaces: FLAGS, ..Fork::default() };
    // A namespace comes to be with a process in it, which is not needed once its files are open.
    let holder = fork(&what, hold).map_err(|error| StepError::Call("clone3", error))?;
    let made = files_of(&holder, uid_map, gid_map);
    let ended = pidfd_send_signal(&holder.pidfd, Signal::KILL)
        .and_then(|()| waitpid(Some(holder.pid), WaitOptions::empty()));
    let files = made?;
    ended.map_err(|error| StepError::Call("end the first process of the namespaces", error))?;
    enter(files.get(1..).unwrap_or_default())?;
    Ok(files)
}

/// Enters namespaces.
pub(super) fn enter(files: &[OwnedFd]) -> Result<(), StepError> {
    files.iter().try_for_each(|file| {
        move_into_link_name_space(file.as_fd(), None).map_err(|error| StepError::Call("setns", error))
    })
}

fn hold() -> u8 {
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() {
        return super::SETUP_FAILED;
    }
    loop {
        std::thread::park();
    }
}

fn files_of(holder: &Forked, uid_map: &[IdMap], gid_map: &[IdMap]) -> Result<Vec<OwnedFd>, StepError> {
    let pid = holder.pid.as_raw_nonzero().get();
    write_map(pid, "uid_map", uid_map)?;
    write_map(pid, "gid_map", gid_map)?;
    let file = |kind| {
        let path = format!("/proc/{pid}/ns/{kind}");
        open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(StepError::path("open", &path))
    };
    KINDS.into_iter().map(file).collect()
}
