//! A further process in a running container.

use std::fs;
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::cgroup::SideCgroup;
use super::create::{duplicate, stdio_orders};
use super::handle::{Container, Namespaces};
use super::launch::{FdList, launch};
use super::orders::{ExecTask, Orders, Task};
use super::plan::{InvalidSpec, MAX_SPEC_BYTES, ProcessPlan};
use super::tracers::can_trace;
use super::{CreateError, CreatedProcess, ExecInput, Guest};

/// Makes a process in a container up to, not including, the exec of its program.
///
/// It gets the container's seccomp filter, and every other property from its own process object.
///
/// # Errors
/// [`CreateError`]; nothing is left then.
pub fn create_exec(
    guest: &Guest,
    container: &Container,
    input: ExecInput,
) -> Result<CreatedProcess, CreateError> {
    if input.process_json.len() > MAX_SPEC_BYTES {
        return Err(InvalidSpec::TooLong(input.process_json.len()).into());
    }
    let process = ProcessPlan::parse(&input.process_json)?;
    let Namespaces { kinds, processes } = container.namespaces();
    let traces = can_trace(&process, kinds);
    let held = guest.tracers.hold(processes)?;

    let mut fds = FdList::default();
    let stdio = stdio_orders(input.stdio, &mut fds);
    let mut own = vec![duplicate(container.cgroup().dir())?];
    // A container that runs its own cgroup manager has moved its init down, and its top takes no process.
    own.extend(init_cgroup(container));
    let aside = match held.has(container.cgroup()) {
        true => Some(SideCgroup::create(&guest.cgroup_root)?),
        false => None,
    };
    let born_in = match &aside {
        Some(aside) => vec![duplicate(aside.dir())?],
        None => own.iter().map(|dir| duplicate(dir.as_fd())).collect::<Result<_, _>>()?,
    };
    let orders = Orders {
        task: Task::Exec(ExecTask {
            init: fds.push(duplicate(container.init().pidfd())?),
            namespaces: kinds,
        }),
        process,
        stdio,
        personality: container.personality(),
        watched: kinds & libc::CLONE_NEWUSER as u64 == 0,
        cgroups: born_in.into_iter().map(|dir| fds.push(dir)).collect(),
    };
    let made = launch(guest, &orders, container.filter(), fds)?;
    if let Some(aside) = aside {
        aside.leave(made.child.pid(), &own)?;
    }
    drop(held);
    if traces {
        guest.tracers.add(processes, container.shared_cgroup());
    }
    Ok(made)
}

/// The cgroup that init is in, where it is below the container's own.
fn init_cgroup(container: &Container) -> Option<std::os::fd::OwnedFd> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", container.init().pid())).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let relative = container.cgroup().relative(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(container.cgroup().dir(), relative, flags, Mode::empty(), resolve).ok()
}
