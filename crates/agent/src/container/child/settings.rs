//! Session, names, sysctls and limits.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::process::{setsid, umask};
use rustix::system::{setdomainname, sethostname};

use super::Child;
use super::error::StepError;
use super::mounts::filesystem;
use crate::container::sys::task;

const DEFAULT_UMASK: u32 = 0o022;

/// A session and a session keyring of its own, and the execution domain.
pub(super) fn start_session(child: &mut Child) -> Result<(), StepError> {
    setsid().map_err(|error| StepError::Call("setsid", error))?;
    match task::new_session_keyring() {
        // A kernel without keys has nothing to share.
        Ok(()) | Err(Errno::NOSYS) => {}
        Err(error) => return Err(StepError::Call("join a session keyring", error)),
    }
    match child.personality {
        Some(personality) => {
            task::set_personality(personality).map_err(|error| StepError::Call("personality", error))
        }
        None => Ok(()),
    }
}

pub(super) fn set_names(child: &mut Child) -> Result<(), StepError> {
    let plan = &child.init()?.plan;
    if let Some(name) = &plan.hostname {
        sethostname(name.as_bytes()).map_err(|error| StepError::Call("sethostname", error))?;
    }
    match &plan.domainname {
        Some(name) => setdomainname(name.as_bytes()).map_err(|error| StepError::Call("setdomainname", error)),
        None => Ok(()),
    }
}

/// Writes sysctls through a procfs of this process's own, which nothing of the image or agent lies on.
pub(super) fn set_sysctls(child: &mut Child) -> Result<(), StepError> {
    let sysctls = &child.init()?.plan.sysctls;
    if sysctls.is_empty() {
        return Ok(());
    }
    let proc = filesystem("proc", "proc", &[], "sysctls")?;
    sysctls.iter().try_for_each(|(path, value)| set_sysctl(&proc, path, value))
}

fn set_sysctl(proc: &OwnedFd, path: &str, value: &str) -> Result<(), StepError> {
    let error = |error| StepError::path("set sysctl", path)(error);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat2(proc, format!("sys/{path}"), flags, Mode::empty(), resolve).map_err(error)?;
    rustix::io::write(&file, value.as_bytes()).map_err(error)?;
    Ok(())
}

/// Limits, I/O priority, scheduling and umask, while the privileges for them are there.
pub(super) fn set_limits(child: &mut Child) -> Result<(), StepError> {
    let process = &child.process;
    if let Some(priority) = process.io_priority {
        task::set_io_priority(priority).map_err(|error| StepError::Call("set I/O priority", error))?;
    }
    if let Some(scheduler) = &process.scheduler {
        task::set_scheduler(scheduler).map_err(|error| StepError::Call("set scheduler", error))?;
    }
    umask(Mode::from_raw_mode(process.umask.unwrap_or(DEFAULT_UMASK)));
    for limit in &process.limits {
        task::set_limit(limit.resource, limit.soft, limit.hard)
            .map_err(|error| StepError::Call("set resource limit", error))?;
    }
    Ok(())
}
