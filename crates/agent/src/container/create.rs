//! Creating a container: plan, cgroup, root file system, then the child.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nacre_protocol::id::ContainerId;
use nacre_protocol::ports::{PROCESS_NAMESPACE, USER_NAMESPACE};
use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, chmod, chown, makedev, mkdir, mknodat, open, openat2,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Gid, Uid};

use super::cgroup::{self, Cgroup};
use super::files::Files;
use super::handle::{Container, Namespaces, Undo};
use super::launch::{FdList, launch};
use super::orders::{InitTask, Orders, StdioOrders, Task};
use super::plan::{ContainerPlan, DevicePlan, JoinPlan, MountSource, NodeKind, Plan};
use super::sys::mount::{ATTR_RDONLY, MountAttr, mount_setattr};
use super::tracers::{ProcessNamespaceId, can_trace};
use super::{ChildStdio, CreateError, CreateInput, CreatedContainer, Guest, rootfs};

/// Does ahead of the first container what only the first one would pay for.
///
/// # Errors
/// [`CreateError`]; creation works all the same where it can.
pub fn warm_up(guest: &Guest) -> Result<(), CreateError> {
    guest.launcher.warm_up(guest)?;
    Ok(cgroup::warm_up(&guest.cgroup_root)?)
}

/// Makes a container up to, not including, the exec of its program.
///
/// # Errors
/// [`CreateError`]; nothing is left then.
pub fn create(guest: &Guest, input: CreateInput) -> Result<CreatedContainer, CreateError> {
    let begun = Instant::now();
    let CreateInput { id, spec_json, rootfs: source, files, devices, stdio } = input;
    let Plan { mut container, process, mut resources, filter, personality } = Plan::parse(&spec_json)?;

    let mut fds = FdList::default();
    let stdio = stdio_orders(stdio, &mut fds);
    // The cgroup first: it is the cheaper of the two to take back.
    let cgroup = Cgroup::create(&guest.cgroup_root, id.as_str(), &resources)?;
    let rootfs_begun = Instant::now();
    let prepared = match rootfs::prepare(guest, &id, &source) {
        Ok(prepared) => prepared,
        Err(error) => {
            drop(Undo::new(cgroup, rootfs::Teardown::default()));
            return Err(error.into());
        }
    };
    let rootfs_us = micros(rootfs_begun);
    let mut undo = Undo::new(cgroup, prepared.teardown);
    for device in &devices {
        let number = undo.rootfs().add_disk(&device.disk_id)?;
        container.devices.push(DevicePlan::of_disk(device, number)?);
        resources.allow_disk(number, device.read_only);
    }
    let cgroup_dir = duplicate(undo.cgroup().dir())?;

    let files = Files::create(guest, &id, &files, &container.namespaces)?;
    let sources = Sources { cgroup: &cgroup_dir, files, moves_processes: process.is_guests_root() };
    let nodes = open_sources(guest, &id, &mut container, sources, &mut fds)?;
    let kinds = container.namespaces.all();
    let traces = can_trace(&process, kinds);
    // Those that are in the namespace already; a new one has nobody yet.
    let joined = joined_processes(&container, &fds)?;
    let held = joined.map(|namespace| guest.tracers.hold(namespace)).transpose()?;
    let orders = Orders {
        task: Task::Init(Box::new(InitTask { plan: container, rootfs: fds.push(prepared.mount) })),
        process,
        stdio,
        personality,
        cgroups: vec![fds.push(cgroup_dir)],
        watched: joined.is_some() && kinds & libc::CLONE_NEWUSER as u64 == 0,
    };
    let init = launch(guest, &orders, filter.as_ref(), fds)?;
    drop(nodes);
    // The child waits for its start, so nothing of the container has run yet.
    undo.cgroup().restrict_devices(&resources)?;
    drop(held);
    let processes = match joined {
        Some(namespace) => namespace,
        None => ProcessNamespaceId::of_process(init.child.pid()).map_err(CreateError::ProcessNamespace)?,
    };
    let parts = undo.disarm();
    let namespaces = Namespaces { kinds, processes };
    let container = Arc::new(Container::new(id, parts, init.child.clone(), namespaces, filter, personality));
    if traces {
        guest.tracers.add(processes, container.shared_cgroup());
    }
    Ok(CreatedContainer { init, container, rootfs_us, create_us: micros(begun) })
}

/// The PID namespace that a container joins; none where it gets a new one.
fn joined_processes(plan: &ContainerPlan, fds: &FdList) -> Result<Option<ProcessNamespaceId>, CreateError> {
    let kind = libc::CLONE_NEWPID as u64;
    let found = match plan.namespaces.join.iter().find(|join| join.kind == kind) {
        Some(join) => {
            let file =
                join.fd.and_then(|fd| fds.get(fd)).ok_or(CreateError::ProcessNamespace(Errno::BADF))?;
            ProcessNamespaceId::of_file(file)
        }
        None if plan.namespaces.has(kind) => return Ok(None),
        None => ProcessNamespaceId::of_process(std::process::id()),
    };
    found.map(Some).map_err(CreateError::ProcessNamespace)
}

pub(super) fn stdio_orders(stdio: ChildStdio, fds: &mut FdList) -> StdioOrders {
    match stdio {
        ChildStdio::Files { stdin, stdout, stderr } => {
            StdioOrders::Files { stdin: fds.push(stdin), stdout: fds.push(stdout), stderr: fds.push(stderr) }
        }
        ChildStdio::Terminal { columns, rows } => StdioOrders::Terminal { columns, rows },
    }
}

pub(super) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, CreateError> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(CreateError::Orders)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Where the sources of mounts are.
struct Sources<'a> {
    cgroup: &'a OwnedFd,
    files: Option<Files>,
    /// Whether the container may write to the guest's cgroups.
    moves_processes: bool,
}

/// The cgroup of a container that has no cgroup namespace. The kernel lets its root move processes of others, which are the guest's to
/// it, out of a cgroup that is to stand still: only who is the guest's root anyway may.
fn cgroup_tree(cgroup: &OwnedFd, writable: bool) -> rustix::io::Result<OwnedFd> {
    let tree = clone_tree(cgroup, false)?;
    if !writable {
        mount_setattr(&tree, &MountAttr { set: ATTR_RDONLY, ..MountAttr::default() }, false)?;
    }
    Ok(tree)
}

/// Opens what only the agent may: bind sources, namespaces to join, device nodes for a user namespace.
fn open_sources(
    guest: &Guest,
    id: &ContainerId,
    plan: &mut ContainerPlan,
    sources: Sources<'_>,
    fds: &mut FdList,
) -> Result<Option<DeviceNodes>, CreateError> {
    let own_cgroup_namespace = plan.namespaces.has(libc::CLONE_NEWCGROUP as u64);
    for mount in &mut plan.mounts {
        match &mut mount.source {
            MountSource::Bind { path, recursive, fd } => {
                let file = Files::open(sources.files.as_ref(), path);
                let file = file.or_else(|| guest.shared_memory.open(path));
                let file = file.or_else(|| guest.volumes.open(path)).or_else(|| guest.sockets.open(path));
                let path = &guest.volumes.or_share(path, &guest.shares_dir);
                *fd = Some(fds.push(file.unwrap_or_else(|| open_bind(guest, path, *recursive))?));
            }
            MountSource::Cgroup { fd } if !own_cgroup_namespace => {
                let tree = cgroup_tree(sources.cgroup, sources.moves_processes);
                let tree = tree.map_err(source_error("cgroup", id.as_str()))?;
                *fd = Some(fds.push(tree));
            }
            MountSource::Cgroup { .. } | MountSource::Filesystem { .. } => {}
        }
    }
    for join in &mut plan.namespaces.join {
        join.fd = Some(fds.push(open_namespace(guest, join)?));
    }
    if !plan.namespaces.has_user() {
        return Ok(None);
    }
    let nodes = DeviceNodes::create(guest, id.as_str())?;
    for (number, device) in plan.devices.iter_mut().enumerate() {
        device.fd = Some(fds.push(nodes.make(number, device)?));
    }
    Ok(Some(nodes))
}

fn source_error(what: &'static str, path: &str) -> impl FnOnce(rustix::io::Errno) -> CreateError {
    let path = path.to_owned();
    move |source| CreateError::Source { what, path, source }
}

/// A copy of the mount at a shared file or directory, not attached anywhere.
///
/// Containers can write to what is shared, so no link is followed on the way.
fn open_bind(guest: &Guest, path: &str, recursive: bool) -> Result<OwnedFd, CreateError> {
    let relative = Path::new(path)
        .strip_prefix(&guest.shares_dir)
        .ok()
        .filter(|relative| !relative.as_os_str().is_empty())
        .ok_or_else(|| CreateError::BindOutside(path.to_owned()))?;
    let error = |source| CreateError::Source { what: "bind source", path: path.to_owned(), source };
    let shares = open(&guest.shares_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(error)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file =
        openat2(&shares, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).map_err(error)?;
    clone_tree(&file, recursive).map_err(error)
}

/// A copy of the mount at a file, attached nowhere, and to which nothing that is mounted elsewhere propagates.
pub(super) fn clone_tree(file: &OwnedFd, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let mount = open_tree(file, "", flags)?;
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount_setattr(&mount, &private, recursive)?;
    Ok(mount)
}

fn open_namespace(guest: &Guest, join: &JoinPlan) -> Result<OwnedFd, CreateError> {
    let file = match guest.launcher.namespaces() {
        Some(namespaces) if join.path == USER_NAMESPACE => duplicate(namespaces.user())?,
        _ if join.path == PROCESS_NAMESPACE => guest.launcher.process_namespace(guest)?,
        _ => open(&*join.path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
            .map_err(source_error("namespace", &join.path))?,
    };
    match super::sys::task::namespace_kind(&file) {
        Ok(kind) if kind == join.kind => Ok(file),
        _ => Err(CreateError::WrongNamespace { path: join.path.clone() }),
    }
}

/// Device nodes on the agent's own tmpfs, as mounts to be bound: a user namespace may not make nodes, and nodes on a
/// file system that it mounted itself would not work.
///
/// Their names go when the value does, once they are bound; before, the kernel would not bind them.
struct DeviceNodes {
    dir: PathBuf,
}

impl DeviceNodes {
    fn create(guest: &Guest, id: &str) -> Result<Self, CreateError> {
        let dir = guest.state_dir.join(format!("{id}.devices"));
        mkdir(&dir, Mode::RWXU).map_err(source_error("directory", &dir.display().to_string()))?;
        Ok(Self { dir })
    }

    fn make(&self, number: usize, device: &DevicePlan) -> Result<OwnedFd, CreateError> {
        let node = self.dir.join(number.to_string());
        let kind = match device.kind {
            NodeKind::Char => FileType::CharacterDevice,
            NodeKind::Block => FileType::BlockDevice,
            NodeKind::Fifo => FileType::Fifo,
        };
        let mode = Mode::from_raw_mode(device.mode);
        let made = || {
            mknodat(CWD, &node, kind, mode, makedev(device.major, device.minor))?;
            // mknod goes by the agent's umask.
            chmod(&node, mode)?;
            chown(&node, Some(Uid::from_raw(device.uid)), Some(Gid::from_raw(device.gid)))?;
            let file = open(&node, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            clone_tree(&file, false)
        };
        made().map_err(source_error("device", &device.path))
    }
}

impl Drop for DeviceNodes {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(error = &error as &dyn std::error::Error, "device nodes of a creation stay");
        }
    }
}
