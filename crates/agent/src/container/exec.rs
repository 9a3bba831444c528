//! A further process in a running container.

use std::fs;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::create::{duplicate, stdio_orders};
use super::handle::Container;
use super::launch::{FdList, launch};
use super::orders::{ExecTask, Orders, Task};
use super::plan::{InvalidSpec, MAX_SPEC_BYTES, ProcessPlan};
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
    let mut fds = FdList::default();
    let stdio = stdio_orders(input.stdio, &mut fds);
    let mut cgroups = vec![fds.push(duplicate(container.cgroup().dir())?)];
    // A container that runs its own cgroup manager has moved its init down, and its top takes no process.
    cgroups.extend(init_cgroup(container).map(|dir| fds.push(dir)));
    let orders = Orders {
        task: Task::Exec(ExecTask {
            init: fds.push(duplicate(container.init().pidfd())?),
            namespaces: container.namespaces(),
        }),
        process,
        stdio,
        personality: container.personality(),
        cgroups,
    };
    launch(guest, &orders, container.filter(), fds)
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
