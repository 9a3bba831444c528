//! Joining namespaces, and becoming root in a user namespace.

use std::os::fd::AsFd;

use rustix::process::{Gid, Uid};
use rustix::thread::{
    ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::error::StepError;
use super::{Child, Fds, Role};
use crate::container::channel;
use crate::container::orders::{Command, ExecTask, Task};
use crate::container::plan::JoinPlan;
use crate::container::sys::task;

const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
const NEWPID: u64 = libc::CLONE_NEWPID as u64;
const NEWCGROUP: u64 = libc::CLONE_NEWCGROUP as u64;

/// Joins one namespace of the configuration.
pub(super) fn join_one(join: &JoinPlan, fds: &Fds) -> Result<(), StepError> {
    let file = join.fd.and_then(|fd| fds.get(fd)).ok_or(StepError::Orders("a namespace is missing"))?;
    move_into_link_name_space(file, None).map_err(StepError::path("join namespace", &join.path))
}

/// First stage of an exec: children will be in the container's pid namespace.
pub(super) fn enter_pid_of(task: &Task, fds: &Fds) -> Result<(), StepError> {
    let Task::Exec(ExecTask { init, namespaces }) = task else { return Ok(()) };
    if namespaces & NEWPID == 0 {
        return Ok(());
    }
    let init = fds.get(*init).ok_or(StepError::Orders("the container's init is missing"))?;
    enter(init, NEWPID)
}

/// Child of an exec: the container's other namespaces.
pub(super) fn join_container(child: &mut Child) -> Result<(), StepError> {
    let Role::Exec { init, namespaces } = &child.role else { return Ok(()) };
    enter(init.as_fd(), namespaces & !NEWPID)?;
    if namespaces & NEWUSER != 0 {
        take_root()?;
    }
    Ok(())
}

/// setns(2) with a pidfd: all at once, or none.
fn enter(init: std::os::fd::BorrowedFd<'_>, namespaces: u64) -> Result<(), StepError> {
    let namespaces = ThreadNameSpaceType::from_bits_retain(namespaces as u32);
    match move_into_thread_name_spaces(init, namespaces) {
        Err(rustix::io::Errno::SRCH) => Err(StepError::InitEnded),
        other => other.map_err(|error| StepError::Call("setns", error)),
    }
}

/// Waits until the agent knows of this process; its id maps are written then.
pub(super) fn wait_for_agent(child: &mut Child) -> Result<(), StepError> {
    match channel::receive::<Command>(&child.channel, None) {
        Ok((Command::Proceed, _)) => Ok(()),
        _ => Err(StepError::Orders("the agent has given up")),
    }
}

/// Child of a new container: root of its user namespace.
pub(super) fn become_root(child: &mut Child) -> Result<(), StepError> {
    if child.init()?.plan.namespaces.has_user() { take_root() } else { Ok(()) }
}

pub(super) fn take_root() -> Result<(), StepError> {
    let error = |error| StepError::Call("become root of the user namespace", error);
    set_thread_groups(&[]).map_err(error)?;
    set_thread_res_gid(Some(Gid::ROOT), Some(Gid::ROOT), Some(Gid::ROOT)).map_err(error)?;
    set_thread_res_uid(Some(Uid::ROOT), Some(Uid::ROOT), Some(Uid::ROOT)).map_err(error)
}

/// Child of a new container: namespaces that are given, and the cgroup namespace, which begins at its own cgroup.
pub(super) fn join(child: &mut Child) -> Result<(), StepError> {
    let namespaces = &child.init()?.plan.namespaces;
    for join in namespaces.join.iter().filter(|join| join.kind != NEWUSER && join.kind != NEWPID) {
        join_one(join, &child.fds)?;
    }
    if namespaces.new & NEWCGROUP != 0 {
        task::unshare(NEWCGROUP).map_err(|error| StepError::Call("unshare cgroup namespace", error))?;
    }
    Ok(())
}
