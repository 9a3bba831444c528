//! The launcher, and the first stage that it forks for each child: takes the orders, prepares what a fork inherits, forks the child as a sibling, and exits.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior, umask};

use super::error::StepError;
use super::{Child, Fds, Role, SETUP_FAILED, fail, namespaces, sandbox};
use crate::container::channel::{self, ChannelError};
use crate::container::orders::{Command, ExecTask, MAX_ORDERS, Orders, Report, Task};
use crate::container::plan::{CLONE_NEWTIME, FdRef, IdMap, NamespacesPlan, ProcessPlan};
use crate::container::seccomp::Filter;
use crate::container::sys::clone::{Fork, Forked, fork};
use crate::container::sys::task;

const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
const NEWPID: u64 = libc::CLONE_NEWPID as u64;

/// The launcher's life.
pub(super) fn launcher() -> u8 {
    // First of all (C15): nobody in a namespace of the container's may look into this process or its forks.
    if set_dumpable_behavior(DumpableBehavior::NotDumpable).is_err() {
        return SETUP_FAILED;
    }
    // Numbers 0 to 2 become the program's; the socket moves out of their way.
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3) else { return SETUP_FAILED };
    if task::set_container_file_limit().is_err() {
        return SETUP_FAILED;
    }
    umask(rustix::fs::Mode::empty());
    task::reset_signals();
    let mut socket = Some(socket);
    while let Some(agent) = &socket {
        let channel = match channel::receive::<Command>(agent, None) {
            Ok((Command::Converse, fds)) => fds.into_iter().next(),
            Ok((Command::MakeNamespaces { uid_map, gid_map }, _)) => {
                make_namespaces(agent, &uid_map, &gid_map);
                None
            }
            // The agent sees the end of a launcher that cannot do its work.
            Ok((Command::Enter, fds)) if sandbox::enter(&fds).is_err() => return SETUP_FAILED,
            Ok(_) => None,
            // The agent is gone, or has no use for this process any more.
            Err(ChannelError::Closed) => return 0,
            // Not the agent's child at all: a container may execute this binary through /proc (C02).
            Err(_) => return SETUP_FAILED,
        };
        let Some(channel) = channel else { continue };
        let what = Fork { sibling: true, ..Fork::default() };
        // Where there is no process to be had, closing the channel tells the agent.
        let _ = fork(&what, || {
            socket = None;
            stage(&channel)
        });
    }
    SETUP_FAILED
}

/// Where the agent is gone there is nobody to tell.
fn make_namespaces(agent: &OwnedFd, uid_map: &[IdMap], gid_map: &[IdMap]) {
    match sandbox::make(uid_map, gid_map) {
        Ok(files) => {
            let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            let _ = channel::send(agent, &Report::Namespaces, &files);
        }
        Err(error) => {
            let _ = fail(agent.as_fd(), "make namespaces", error);
        }
    }
}

fn stage(channel: &OwnedFd) -> u8 {
    match run(channel) {
        Ok(status) => status,
        Err(error) => fail(channel.as_fd(), "prepare", error),
    }
}

fn run(channel: &OwnedFd) -> Result<u8, StepError> {
    let first = channel::receive::<Command>(channel, None);
    let (command, fds) = first.map_err(|_| StepError::Orders("no message came"))?;
    if command == Command::MakeProcessNamespace {
        return sandbox::make_process_namespace(channel, fds).map(|()| 0);
    }
    let (orders, filter, fds) = read_orders(command, fds)?;
    let Orders { task, process, stdio, personality, cgroups, watched } = orders;
    inherit(&process)?;
    let plan = match &task {
        Task::Init(init) => Some(&init.plan.namespaces),
        Task::Exec(_) => None,
    };
    let before = Before::prepare(plan, &task, &fds)?;
    send(channel, &Report::Prepared)?;
    match channel::receive::<Command>(channel, None) {
        Ok((Command::Go, _)) => {}
        // The agent has given up.
        Ok(_) | Err(ChannelError::Closed) => return Ok(SETUP_FAILED),
        Err(_) => return Err(StepError::Orders("the agent's go did not come")),
    }
    let maps = if before.new & NEWUSER != 0 { plan.cloned() } else { None };
    let mut child = Some((channel, fds, task, process, filter));
    let forked = fork_into(&cgroups, before.new, &mut child, |parts| {
        let (channel, mut fds, task, process, filter) = parts;
        let role = match task {
            Task::Init(init) => Role::Init(init),
            Task::Exec(ExecTask { init, namespaces }) => match fds.take(init) {
                Ok(init) => Role::Exec { init, namespaces },
                Err(error) => return fail(channel.as_fd(), "prepare", error),
            },
        };
        let channel = match rustix::io::fcntl_dupfd_cloexec(channel, 3) {
            Ok(channel) => channel,
            Err(error) => return fail(channel.as_fd(), "prepare", StepError::Call("dup", error)),
        };
        let child = Child {
            channel,
            fds,
            role,
            process,
            personality,
            filter,
            watched,
            stdio,
            root: None,
            read_only_later: Vec::new(),
            terminal: None,
            identity: None,
            program: None,
        };
        child.run()
    })?;
    finish(channel, &forked, maps.as_ref())
}

type Parts<'a> = (&'a OwnedFd, Fds, Task, ProcessPlan, Option<Filter>);

/// Forks into the first of the cgroups that takes a process: one with controllers enabled below it does not.
fn fork_into(
    cgroups: &[FdRef],
    namespaces: u64,
    parts: &mut Option<Parts<'_>>,
    child: impl FnOnce(Parts<'_>) -> u8 + Copy,
) -> Result<Forked, StepError> {
    let mut last = Errno::NOENT;
    let count = cgroups.len();
    for at in 0..count {
        // The copy is what the fork borrows, since the child takes the list itself.
        let dir = parts
            .as_ref()
            .and_then(|parts| parts.1.get(*cgroups.get(at)?))
            .ok_or(StepError::Orders("a cgroup is missing"))?;
        let dir = rustix::io::fcntl_dupfd_cloexec(dir, 3).map_err(|error| StepError::Call("dup", error))?;
        let what = Fork { namespaces, cgroup: Some(dir.as_fd()), sibling: true };
        let forked = fork(&what, || match parts.take() {
            Some(parts) => child(parts),
            None => SETUP_FAILED,
        });
        match forked {
            Ok(forked) => return Ok(forked),
            Err(error @ (Errno::BUSY | Errno::OPNOTSUPP)) => last = error,
            // The pid namespace takes no process any more.
            Err(Errno::NOMEM) if namespaces & NEWPID == 0 => return Err(StepError::InitEnded),
            Err(error) => return Err(StepError::Call("clone3", error)),
        }
    }
    Err(StepError::Call("clone3 into the cgroup", last))
}

fn finish(channel: &OwnedFd, forked: &Forked, maps: Option<&NamespacesPlan>) -> Result<u8, StepError> {
    let pid = forked.pid.as_raw_nonzero().get();
    if let Some(plan) = maps {
        write_map(pid, "uid_map", &plan.uid_map)?;
        write_map(pid, "gid_map", &plan.gid_map)?;
    }
    channel::send(channel, &Report::Forked { pid }, &[forked.pidfd.as_fd()])
        .map_err(|_| StepError::Orders("the agent does not listen"))?;
    Ok(0)
}

/// Written by this process, which has the guest's own privileges: a map of any ids.
pub(super) fn write_map(pid: i32, file: &str, maps: &[IdMap]) -> Result<(), StepError> {
    write_proc(&format!("/proc/{pid}/{file}"), &IdMap::text(maps))
}

fn write_proc(path: &str, text: &str) -> Result<(), StepError> {
    fs::write(path, text).map_err(|error| StepError::Path {
        action: "write",
        path: path.to_owned(),
        source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })
}

/// What a fork inherits and what only the guest's own root may set.
fn inherit(process: &ProcessPlan) -> Result<(), StepError> {
    if let Some(score) = process.oom_score_adj {
        write_proc("/proc/self/oom_score_adj", &score.to_string())?;
    }
    for limit in &process.limits {
        let error = |error| StepError::Call("set resource limit", error);
        let (soft, hard) = task::limit(limit.resource).map_err(error)?;
        // Room for the hard value now; the child lowers itself to the exact values at its end.
        if hard < limit.hard {
            task::set_limit(limit.resource, soft, limit.hard).map_err(error)?;
        }
    }
    Ok(())
}

/// What was done before the fork.
struct Before {
    /// CLONE_NEW* flags for the fork.
    new: u64,
}

impl Before {
    fn prepare(plan: Option<&NamespacesPlan>, task: &Task, fds: &Fds) -> Result<Self, StepError> {
        let Some(plan) = plan else {
            namespaces::enter_pid_of(task, fds)?;
            return Ok(Self { new: 0 });
        };
        let mut new = plan.new;
        // The clocks of a time namespace can be set only while nobody is in it.
        if new & CLONE_NEWTIME != 0 {
            new &= !CLONE_NEWTIME;
            task::unshare(CLONE_NEWTIME).map_err(|error| StepError::Call("unshare", error))?;
            if !plan.time_offsets.is_empty() {
                write_proc("/proc/self/timens_offsets", &plan.time_offsets.join("\n"))?;
            }
        }
        // A new cgroup namespace begins at the cgroup of who makes it: the child does, once it is in its own.
        new &= !(libc::CLONE_NEWCGROUP as u64);
        // New namespaces belong to the user namespace that their maker is in, and a pid namespace is for children.
        for kind in [NEWUSER, NEWPID] {
            if let Some(join) = plan.join.iter().find(|join| join.kind == kind) {
                namespaces::join_one(join, fds)?;
            }
        }
        Ok(Self { new })
    }
}

fn send(channel: &OwnedFd, report: &Report) -> Result<(), StepError> {
    channel::send(channel, report, &[]).map_err(|_| StepError::Orders("the agent does not listen"))
}

fn read_orders(command: Command, fds: Vec<OwnedFd>) -> Result<(Orders, Option<Filter>, Fds), StepError> {
    let malformed = StepError::Orders;
    let Command::Orders { json } = command else { return Err(malformed("something else came first")) };
    let mut fds = fds.into_iter();
    let memory = fds.next().ok_or(malformed("they came without their memory"))?;
    seek(&memory, SeekFrom::Start(0)).map_err(|error| StepError::Call("seek", error))?;
    let mut bytes = Vec::new();
    let mut memory = File::from(memory).take(MAX_ORDERS as u64 + 1);
    memory.read_to_end(&mut bytes).map_err(|_| malformed("they cannot be read"))?;
    if bytes.len() > MAX_ORDERS {
        return Err(malformed("they are too long"));
    }
    let (json, filter) = bytes.split_at_checked(json).ok_or(malformed("they are shorter than said"))?;
    let orders = serde_json::from_slice(json).map_err(|_| malformed("they are no orders"))?;
    let filter = match filter {
        [] => None,
        bytes => Some(Filter::from_bytes(bytes).ok_or(malformed("the filter is malformed"))?),
    };
    Ok((orders, filter, Fds(fds.map(Some).collect())))
}
