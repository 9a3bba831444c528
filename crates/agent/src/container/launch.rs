//! Making a child and bringing it to the point before its exec (the agent's side of [`super::orders`]).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command as Program, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::move_into_link_name_space;
use rustix::time::Timespec;

use super::cgroup::SideCgroup;
use super::channel::{self, ChannelError};
use super::orders::{Command, MAX_FDS, Orders, Report};
use super::plan::{FdRef, IdMaps};
use super::seccomp::Filter;
use super::start::Starter;
use super::{CreateError, CreatedProcess, Guest};
use crate::process::{Child, Spawned};

/// How long any one answer may take. A shared directory on a slow host is the slowest thing in between.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a killed child may take to end.
const KILL: Duration = Duration::from_secs(10);

/// Descriptors that go with the orders.
#[derive(Debug, Default)]
pub(super) struct FdList(Vec<OwnedFd>);

impl FdList {
    /// Adds one and gives its place.
    pub(super) fn push(&mut self, fd: OwnedFd) -> FdRef {
        self.0.push(fd);
        // The list is limited to 253 entries when it is sent.
        u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn get(&self, at: FdRef) -> Option<BorrowedFd<'_>> {
        self.0.get(usize::try_from(at).ok()?).map(AsFd::as_fd)
    }
}

/// The launcher: `nacre-agent launcher`, a small process that forks the first stage of every child.
///
/// It is executed once and stays, so that a creation does not pay for an exec and its relocations. It is made where it
/// is first needed; [`Launcher::warm_up`] makes it earlier. Dropping the value ends the process.
#[derive(Debug, Default)]
pub struct Launcher {
    running: Mutex<Option<Running>>,
    /// Those that it is in, where they are not the agent's.
    namespaces: OnceLock<Namespaces>,
    /// That of the sandbox's processes, once it is made.
    processes: Mutex<Option<ProcessNamespace>>,
}

/// A PID namespace, whose first process ends with this.
#[derive(Debug)]
struct ProcessNamespace {
    file: OwnedFd,
    /// Of its first process.
    channel: OwnedFd,
    _cgroup: SideCgroup,
}

impl ProcessNamespace {
    fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.channel, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !poll(&mut fds, Some(&now)).is_ok_and(|_| fds[0].revents().contains(PollFlags::HUP))
    }
}

/// The namespaces of a sandbox whose containers are in a user namespace. It owns the others.
#[derive(Debug)]
pub struct Namespaces {
    user: OwnedFd,
    /// Network, IPC, UTS.
    owned: [OwnedFd; 3],
}

impl Namespaces {
    /// Moves the calling thread into them, but for the user namespace.
    ///
    /// # Errors
    /// Those of setns(2).
    pub fn enter(&self) -> rustix::io::Result<()> {
        self.owned.iter().try_for_each(|file| move_into_link_name_space(file.as_fd(), None))
    }

    /// The network namespace.
    pub fn network(&self) -> BorrowedFd<'_> {
        let [network, ..] = &self.owned;
        network.as_fd()
    }

    pub(super) fn user(&self) -> BorrowedFd<'_> {
        self.user.as_fd()
    }
}

#[derive(Debug)]
struct Running {
    process: Child,
    socket: OwnedFd,
}

impl Launcher {
    /// Makes the process, where it is not there yet.
    ///
    /// # Errors
    /// [`CreateError::Spawn`].
    pub fn warm_up(&self, guest: &Guest) -> Result<(), CreateError> {
        self.with(guest, |_| Ok(()))
    }

    /// Makes the namespaces that every child is born in from now on. Once for each guest.
    ///
    /// # Errors
    /// [`CreateError`].
    pub fn make_namespaces(&self, guest: &Guest, maps: IdMaps) -> Result<&Namespaces, CreateError> {
        let mut made = None;
        let IdMaps { uids: uid_map, gids: gid_map } = maps;
        let order = Command::MakeNamespaces { uid_map, gid_map };
        if self.namespaces.get().is_some() {
            return Err(CreateError::Protocol("the sandbox has its namespaces".into()));
        }
        self.with(guest, |running| {
            channel::send(&running.socket, &order, &[])?;
            made = Some(report(&running.socket, "making namespaces"));
            Ok(())
        })?;
        let files = match made {
            Some(Ok((Report::Namespaces, files))) => <[OwnedFd; 4]>::try_from(files).ok(),
            Some(Err(error)) => return Err(error),
            _ => None,
        };
        let [user, network, ipc, uts] =
            files.ok_or_else(|| CreateError::Protocol("no namespaces came".into()))?;
        Ok(self.namespaces.get_or_init(|| Namespaces { user, owned: [network, ipc, uts] }))
    }

    /// Those that were made.
    pub fn namespaces(&self) -> Option<&Namespaces> {
        self.namespaces.get()
    }

    /// A descriptor of the PID namespace that the containers of a sandbox share which has no process of its own. The first call
    /// makes it, with a first process that lasts as long as the guest.
    ///
    /// # Errors
    /// [`CreateError`].
    pub(super) fn process_namespace(&self, guest: &Guest) -> Result<OwnedFd, CreateError> {
        let mut slot = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        let namespace = match slot.take() {
            Some(namespace) if namespace.is_alive() => namespace,
            // Nobody can be born any more where the first process has ended.
            _ => self.make_process_namespace(guest)?,
        };
        rustix::io::fcntl_dupfd_cloexec(&slot.insert(namespace).file, 3).map_err(CreateError::Orders)
    }

    fn make_process_namespace(&self, guest: &Guest) -> Result<ProcessNamespace, CreateError> {
        let (ours, theirs) =
            channel::pair().map_err(|error| CreateError::Child("socket pair", error.into()))?;
        self.fork_stage(guest, theirs)?;
        let cgroup = SideCgroup::without_devices(&guest.cgroup_root)?;
        let mut fds = vec![cgroup.dir()];
        fds.extend(self.namespaces().map(Namespaces::user));
        channel::send(&ours, &Command::MakeProcessNamespace, &fds)
            .map_err(|error| CreateError::Child("orders", error))?;
        let phase = "making a process namespace";
        let file = match report(&ours, phase)? {
            (Report::Namespaces, files) => files.into_iter().next(),
            _ => None,
        };
        let file = file.ok_or_else(|| CreateError::Protocol("no namespace came".into()))?;
        match report(&ours, phase)? {
            (Report::Ready, _) => Ok(ProcessNamespace { file, channel: ours, _cgroup: cgroup }),
            (other, _) => Err(CreateError::Protocol(format!("{other:?}"))),
        }
    }

    /// Has a first stage forked, with `socket` as its channel.
    fn fork_stage(&self, guest: &Guest, socket: OwnedFd) -> Result<(), CreateError> {
        self.with(guest, |running| channel::send(&running.socket, &Command::Converse, &[socket.as_fd()]))
    }

    fn with(
        &self,
        guest: &Guest,
        mut act: impl FnMut(&Running) -> Result<(), ChannelError>,
    ) -> Result<(), CreateError> {
        let mut slot = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = slot.as_ref() {
            // A launcher that somebody has killed is made anew, once.
            match act(running) {
                Ok(()) if running.process.exit().is_none() => return Ok(()),
                _ => *slot = None,
            }
        }
        let running = slot.insert(Running::spawn(guest)?);
        if let Some(namespaces) = self.namespaces.get() {
            let [network, ipc, uts] = &namespaces.owned;
            channel::send(&running.socket, &Command::Enter, &[network.as_fd(), ipc.as_fd(), uts.as_fd()])
                .map_err(|error| CreateError::Child("launcher", error))?;
        }
        act(running).map_err(|error| CreateError::Child("launcher", error))
    }
}

impl Running {
    /// `Command` uses posix_spawn here (no hooks between fork and exec), so no lock or allocation of this threaded
    /// process is copied, and no page table either.
    fn spawn(guest: &Guest) -> Result<Self, CreateError> {
        let error = |source| CreateError::Spawn { exe: guest.agent_exe.display().to_string(), source };
        let (socket, theirs) = channel::pair().map_err(|errno| error(errno.into()))?;
        let mut command = Program::new(&guest.agent_exe);
        command.arg0("nacre-agent").arg("launcher").env_clear().stdin(theirs).stdout(Stdio::null());
        let process = guest.children.spawn(|| {
            let spawned = command.spawn().map_err(error)?;
            let pid = i32::try_from(spawned.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH);
            let made = pid.and_then(|pid| Ok(Spawned { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())? }));
            made.map_err(|errno| error(errno.into()))
        })?;
        Ok(Self { process, socket })
    }
}

/// Makes a child of the agent, gives it its orders and waits until it is ready for its exec.
///
/// # Errors
/// [`CreateError`]; the child has ended then.
pub(super) fn launch(
    guest: &Guest,
    orders: &Orders,
    filter: Option<&Filter>,
    fds: FdList,
) -> Result<CreatedProcess, CreateError> {
    if fds.0.len() >= MAX_FDS {
        return Err(CreateError::TooManyFds(fds.0.len()));
    }
    let program = orders.process.args.first().cloned().unwrap_or_default();
    let (ours, theirs) = channel::pair().map_err(|error| CreateError::Child("socket pair", error.into()))?;
    guest.launcher.fork_stage(guest, theirs)?;
    // On an error the first stage ends by itself, since `ours` is closed.
    let (child, terminal) = converse(guest, &ours, orders, filter, fds)?;
    Ok(CreatedProcess { child, starter: Starter::new(ours, program), terminal })
}

fn converse(
    guest: &Guest,
    socket: &OwnedFd,
    orders: &Orders,
    filter: Option<&Filter>,
    fds: FdList,
) -> Result<(Child, Option<OwnedFd>), CreateError> {
    send_orders(socket, orders, filter, &fds)?;
    // The child has its own copies now; pipes must not be kept open here.
    drop(fds);
    match report(socket, "preparing")? {
        (Report::Prepared, _) => {}
        (other, _) => return Err(CreateError::Protocol(format!("{other:?}"))),
    }
    let child = guest.children.spawn(|| {
        command(socket, Command::Go)?;
        match report(socket, "forking")? {
            (Report::Forked { pid }, fds) => {
                let pidfd = fds.into_iter().next();
                match (Pid::from_raw(pid), pidfd) {
                    (Some(pid), Some(pidfd)) => Ok(Spawned { pid, pidfd }),
                    _ => Err(CreateError::Protocol("forked without pid or pidfd".into())),
                }
            }
            (other, _) => Err(CreateError::Protocol(format!("{other:?}"))),
        }
    })?;
    let set_up = command(socket, Command::Proceed).and_then(|()| wait_until_ready(socket));
    if set_up.is_err() {
        child.kill_and_wait(KILL);
    }
    Ok((child, set_up?))
}

fn wait_until_ready(socket: &OwnedFd) -> Result<Option<OwnedFd>, CreateError> {
    let mut terminal = None;
    loop {
        match report(socket, "setting up")? {
            (Report::Terminal, fds) if terminal.is_none() => terminal = fds.into_iter().next(),
            (Report::Ready, _) => return Ok(terminal),
            (other, _) => return Err(CreateError::Protocol(format!("{other:?}"))),
        }
    }
}

fn send_orders(
    socket: &OwnedFd,
    orders: &Orders,
    filter: Option<&Filter>,
    fds: &FdList,
) -> Result<(), CreateError> {
    let written = || -> std::io::Result<(usize, OwnedFd)> {
        let json = serde_json::to_vec(orders)?;
        let mut memory = File::from(memfd_create("orders", MemfdFlags::CLOEXEC)?);
        memory.write_all(&json)?;
        if let Some(filter) = filter {
            memory.write_all(&filter.to_bytes())?;
        }
        Ok((json.len(), memory.into()))
    };
    let (json, memory) =
        written().map_err(|error| CreateError::Orders(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    let mut all = vec![memory.as_fd()];
    all.extend(fds.0.iter().map(AsFd::as_fd));
    channel::send(socket, &Command::Orders { json }, &all)
        .map_err(|error| CreateError::Child("orders", error))
}

fn command(socket: &OwnedFd, command: Command) -> Result<(), CreateError> {
    channel::send(socket, &command, &[]).map_err(|error| CreateError::Child("orders", error))
}

/// The next report; a failure becomes the error.
fn report(socket: &OwnedFd, phase: &'static str) -> Result<(Report, Vec<OwnedFd>), CreateError> {
    match channel::receive(socket, Some(ANSWER)) {
        Ok((Report::Failed(failure), _)) => Err(failure.into()),
        Ok(other) => Ok(other),
        Err(error @ ChannelError::Closed) => Err(CreateError::Child(phase, error)),
        Err(error) => Err(CreateError::Child(phase, error)),
    }
}
