//! Namespaces of a sandbox: those that its user namespace owns, where it has one, which the launcher makes and all that it forks is
//! in; and that of its processes, where no container of its own has made it.

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{
    DumpableBehavior, Gid, Signal, Uid, WaitOptions, pidfd_send_signal, set_dumpable_behavior,
    set_parent_process_death_signal, waitpid,
};
use rustix::thread::{
    move_into_link_name_space, set_name, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::error::StepError;
use super::stage::write_map;
use super::{mounts, namespaces, pivot};
use crate::container::channel;
use crate::container::orders::Report;
use crate::container::plan::IdMap;
use crate::container::seccomp::Filter;
use crate::container::sys::clone::{Fork, Forked, fork};
use crate::container::sys::mount::{
    ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, MountAttr, mount_setattr,
};
use crate::container::sys::seccomp::seccomp_filter;
use crate::container::sys::task;

/// The user namespace first; it owns the others.
const KINDS: [&str; 4] = ["user", "net", "ipc", "uts"];

/// Who has nothing: the user of the CRI's own pause images.
const NOBODY: u32 = 65_535;

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

/// Makes the PID namespace of a sandbox, whose first process sends its file. `fds` are the cgroup that it is to be in, and the user
/// namespace that it belongs to, where that is not the guest's.
pub(super) fn make_process_namespace(channel: &OwnedFd, fds: Vec<OwnedFd>) -> Result<(), StepError> {
    let (cgroup, user) = fds.split_first().ok_or(StepError::Orders("a cgroup is missing"))?;
    enter(user)?;
    let namespaces = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64;
    // The agent's child, which it reaps when the guest ends.
    let what = Fork { namespaces, cgroup: Some(cgroup.as_fd()), sibling: true };
    let first = fork(&what, || match be_first_process(channel, !user.is_empty()) {
        Ok(never) => match never {},
        Err(error) => super::fail(channel.as_fd(), "first process", error),
    });
    first.map(drop).map_err(|error| StepError::Call("clone3", error))
}

/// PID 1 of a sandbox's processes: reaps, and is nothing else. Whoever may look at it finds a process of nobody in an empty
/// directory, and whoever can attach to it (it is in their namespace) one that can read and write what it has open: its channel.
fn be_first_process(channel: &OwnedFd, in_user_namespace: bool) -> Result<Infallible, StepError> {
    const OWN: &str = "/proc/self/ns/pid";
    let file =
        open(OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(StepError::path("open", OWN))?;
    let call = |step| move |error| StepError::Call(step, error);
    task::ignore_ends_of_children();
    set_name(c"pause").map_err(call("set name"))?;
    if in_user_namespace {
        namespaces::take_root()?;
    }
    task::unshare(libc::CLONE_NEWCGROUP as u64).map_err(call("unshare cgroup namespace"))?;
    let (user, group) = (nobody_of("/proc/self/uid_map")?, nobody_of("/proc/self/gid_map")?);
    let empty = mounts::filesystem("tmpfs", "pause", &[("size".to_owned(), Some("4k".to_owned()))], "/")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(call("make all mounts private"))?;
    pivot::attach_at_root(&empty).map_err(call("attach an empty root"))?;
    let set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
    mount_setattr(&empty, &MountAttr { set, ..MountAttr::default() }, false)
        .map_err(call("set root attributes"))?;
    pivot::swap(&empty)?;
    set_thread_groups(&[]).map_err(call("drop groups"))?;
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    set_thread_res_gid(Some(group), Some(group), Some(group)).map_err(call("drop group"))?;
    // With the last of root's ids the capabilities go (capabilities(7)).
    set_thread_res_uid(Some(user), Some(user), Some(user)).map_err(call("drop user"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(call("be not dumpable"))?;
    set_no_new_privs(true).map_err(call("no_new_privs"))?;
    channel::send(channel, &Report::Namespaces, &[file.as_fd()])
        .map_err(|_| StepError::Orders("the agent does not listen"))?;
    task::close_all_but(channel);
    let filter = filter()?.raw();
    confined(&filter, channel)
}

/// What the first process may still do: it waits for the end of its channel, which the agent holds for as long as it holds the
/// namespace, and on which it says nothing.
const ALLOWED: &str = r#"{"defaultAction": "SCMP_ACT_KILL_PROCESS", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
    {"names": ["read", "write", "restart_syscall", "rt_sigreturn", "exit_group"], "action": "SCMP_ACT_ALLOW"}]}"#;

fn filter() -> Result<Filter, StepError> {
    let bad = |_| StepError::Orders("the first process has no filter");
    let profile =
        serde_json::from_str(ALLOWED).map_err(|_| StepError::Orders("the first process has no profile"))?;
    Filter::compile(&profile).map_err(bad)
}

/// The rest of its life. Nothing here allocates or drops: only [`ALLOWED`] is left.
fn confined(filter: &[libc::sock_filter], channel: &OwnedFd) -> Result<Infallible, StepError> {
    seccomp_filter(filter, 0).map_err(|error| StepError::Call("install the seccomp filter", error))?;
    // `Report::Ready` as the agent reads it.
    if rustix::io::write(channel, br#""Ready""#).is_err() {
        task::end(super::SETUP_FAILED.into());
    }
    loop {
        match rustix::io::read(channel, &mut [0; 1]) {
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => task::end(0),
        }
    }
}

/// Id of nobody by a map of this process's: the one of pause images, or the last that there is.
fn nobody_of(map: &str) -> Result<u32, StepError> {
    let text = fs::read_to_string(map).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let text = text.map_err(StepError::path("read", map))?;
    nobody(&text).ok_or(StepError::Orders("the user namespace has no ids"))
}

fn nobody(map: &str) -> Option<u32> {
    let ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (first, _, size) = (numbers.next()?.ok()?, numbers.next()?, numbers.next()?.ok()?);
        Some(first..=first.checked_add(size.checked_sub(1)?)?)
    });
    let mut last = None;
    for range in ranges {
        if range.contains(&NOBODY) {
            return Some(NOBODY);
        }
        last = last.max(Some(*range.end()));
    }
    last
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_an_id_that_the_namespace_has() {
        for (map, id) in [
            ("         0          0 4294967295\n", Some(65_535)),
            ("0 100000 65536\n", Some(65_535)),
            ("0 100000 1000\n", Some(999)),
            ("0 1000 1\n5 100000 10\n1 100 2\n", Some(14)),
            ("", None),
        ] {
            assert_eq!(nobody(map), id, "{map:?}");
        }
    }

    #[test]
    fn first_process_has_a_filter() {
        assert!(filter().is_ok());
    }
}
