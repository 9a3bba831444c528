//! A VM as its owner sees it: the `nacre-vmm` process, its control socket, and why it ended.
//!
//! ```text
//! launch: socket pair, pipes -> clone3 (own PID namespace, cgroup) -> Start with descriptors -> Started
//!             one task watches:  control socket | serial pipe | standard error | pidfd
//!                                                                                 `-> VmExit, at once
//! ```
//!
//! A VMM may have been taken over by its guest: replies are bounded, checked and only ever looked up. Dropping the
//! [`Vm`] kills the process and reaps it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nacre_protocol::control::{Envelope, Failure, FailureKind, Reply, Request, StartTimings, VmStats};
use nacre_protocol::vm::MAX_SLOTS;
use tokio::io::Interest;
use tokio::sync::{oneshot, watch as latest};

use crate::channel::{self, Channel, ChannelError, FdTable};
use crate::network::Tap;
use crate::process::Child;
use crate::sys::{self, Program};
use crate::tail::{LogLines, TailReader};
use crate::text::harmless;

mod exit;
mod parts;
mod watch;

pub use exit::VmExit;
pub use parts::{Disk, Parts, Serial};

use parts::{configure, disk_config, net_config};
use watch::Watch;

/// Bytes of the console that are kept.
const CONSOLE_TAIL: usize = 64 * 1024;

/// Bytes of the VMM's standard error that are kept.
const STDERR_TAIL: usize = 8 * 1024;

/// Lines of its standard error that go into the log: a guest may know how to make it say more.
const LOGGED_LINES: u32 = 200;

/// A VM that cannot be started or does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A descriptor for the VMM could not be made.
    #[error("cannot make {what} for the VM")]
    Prepare {
        /// What it is.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The process could not be started.
    #[error("cannot start {path}")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The control socket failed.
    #[error("cannot speak to the VMM")]
    Channel(#[from] ChannelError),
    /// The VMM says no.
    #[error("the VMM refused to {action}: {}{}", harmless(&failure.message, 1024), remedy(failure.kind))]
    Refused {
        /// What was asked.
        action: &'static str,
        /// Its answer.
        failure: Failure,
    },
    /// The VMM answered something else than was asked.
    #[error("the VMM's answer to {action} makes no sense")]
    Nonsense {
        /// What was asked.
        action: &'static str,
    },
    /// No answer.
    #[error("the VMM did not {action} within {} ms", timeout.as_millis())]
    Timeout {
        /// What was asked.
        action: &'static str,
        /// How long was waited.
        timeout: Duration,
    },
    /// It is over.
    #[error("{0}")]
    Ended(Arc<VmExit>),
}

/// What to do about a refusal, where the caller can do something.
fn remedy(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Image => "; build kernel and agent anew: `cargo xtask guest`",
        FailureKind::Kvm => "; see `nacre check`",
        FailureKind::Resources => "; free some memory, or ask for less",
        FailureKind::Invalid | FailureKind::Device | FailureKind::Jail | FailureKind::State => "",
    }
}

/// Where a VM runs.
#[derive(Debug)]
pub struct Place<'a> {
    /// The VMM.
    pub program: &'a Path,
    /// cgroup v2 directory that it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether it gets a PID namespace (needs root).
    pub new_pid_namespace: bool,
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Reply, Failure>>>>>;

/// A VM. Dropping it ends it.
#[derive(Debug)]
pub struct Vm {
    child: Arc<Child>,
    channel: Arc<Channel>,
    pending: Pending,
    next_id: AtomicU64,
    exit: latest::Receiver<Option<Arc<VmExit>>>,
}

impl Vm {
    /// Starts the process and the one task that watches it. The VM itself starts with [`Self::start`].
    ///
    /// # Errors
    /// See [`VmError`].
    pub fn spawn(place: &Place<'_>) -> Result<(Self, Serial), VmError> {
        let prepare = |what| move |source: io::Error| VmError::Prepare { what, source };
        let (channel, control) = channel::pair().map_err(prepare("the control socket"))?;
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (serial, serial_write) = pipe().map_err(io::Error::from).map_err(prepare("the serial pipe"))?;
        let (stderr, stderr_write) = pipe().map_err(io::Error::from).map_err(prepare("the error pipe"))?;
        // Guest output must never make a vCPU wait.
        rustix::io::ioctl_fionbio(&serial_write, true)
            .map_err(io::Error::from)
            .map_err(prepare("the serial pipe"))?;
        let null = File::options().read(true).write(true).open("/dev/null").map_err(prepare("/dev/null"))?;
        let spawned = sys::spawn(&Program {
            path: place.program,
            args: &[],
            env: &[],
            fds: &[null.as_fd(), null.as_fd(), stderr_write.as_fd(), control.as_fd()],
            cgroup: place.cgroup,
            new_pid_namespace: place.new_pid_namespace,
        })
        .map_err(|source| VmError::Spawn { path: place.program.to_owned(), source })?;

        let child = Arc::new(Child::new(spawned));
        let channel = Arc::new(channel);
        let pending = Pending::default();
        let (exit_sender, exit) = latest::channel(None);
        let pidfd = child.as_fd().try_clone_to_owned().and_then(|fd| sys::watch(fd, Interest::READABLE));
        let watch = Watch {
            pidfd: pidfd.map_err(prepare("a pidfd"))?,
            child: child.clone(),
            channel: channel.clone(),
            pending: pending.clone(),
            serial: TailReader::new(serial, CONSOLE_TAIL).map_err(prepare("the serial pipe"))?,
            stderr: TailReader::new(stderr, STDERR_TAIL).map_err(prepare("the error pipe"))?,
            stderr_lines: LogLines::new(LOGGED_LINES),
            exit: exit_sender,
        };
        tokio::spawn(watch.run());
        Ok((Self { child, channel, pending, next_id: AtomicU64::new(1), exit }, Serial(serial_write)))
    }

    /// Sends the configuration with its descriptors; the vCPUs run when this returns.
    ///
    /// # Errors
    /// See [`VmError`].
    pub async fn start(
        &self,
        parts: Parts,
        serial: Serial,
        timeout: Duration,
    ) -> Result<StartTimings, VmError> {
        let mut fds = FdTable::default();
        let config = configure(&parts, &serial, &mut fds);
        let request = Request::Start(Box::new(config));
        match self.request("start", request, fds.as_slice(), timeout).await? {
            Reply::Started(timings) => Ok(timings),
            _ => Err(VmError::Nonsense { action: "start" }),
        }
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    /// See [`VmError`].
    pub async fn pause(&self, timeout: Duration) -> Result<(), VmError> {
        self.done("pause", Request::Pause, timeout).await
    }

    /// Lets the vCPUs go on.
    ///
    /// # Errors
    /// See [`VmError`].
    pub async fn resume(&self, timeout: Duration) -> Result<(), VmError> {
        self.done("resume", Request::Resume, timeout).await
    }

    /// Counters of the VM.
    ///
    /// # Errors
    /// See [`VmError`].
    pub async fn stats(&self, timeout: Duration) -> Result<VmStats, VmError> {
        match self.request("tell its counters", Request::Stats, &[], timeout).await? {
            Reply::Stats(stats) => Ok(stats),
            _ => Err(VmError::Nonsense { action: "tell its counters" }),
        }
    }

    /// Gives a free slot a disk; the slot's number, which the agent is to bind.
    ///
    /// # Errors
    /// See [`VmError`].
    pub async fn plug_disk(&self, disk: &Disk, timeout: Duration) -> Result<u32, VmError> {
        let mut fds = FdTable::default();
        let request = Request::PlugDisk(disk_config(disk, &mut fds));
        self.plugged("plug a disk", request, &fds, timeout).await
    }

    /// Gives a free slot a network link; the slot's number, which the agent is to bind.
    ///
    /// # Errors
    /// See [`VmError`].
    pub async fn plug_net(&self, tap: &Tap, timeout: Duration) -> Result<u32, VmError> {
        let mut fds = FdTable::default();
        let request = Request::PlugNet(net_config(tap, &mut fds));
        self.plugged("plug a network link", request, &fds, timeout).await
    }

    /// Takes a device away that the agent has unbound.
    ///
    /// # Errors
    /// See [`VmError`].
    pub async fn unplug(&self, slot: u32, timeout: Duration) -> Result<(), VmError> {
        self.done("unplug a device", Request::Unplug { slot }, timeout).await
    }

    async fn plugged(
        &self,
        action: &'static str,
        request: Request,
        fds: &FdTable<'_>,
        timeout: Duration,
    ) -> Result<u32, VmError> {
        match self.request(action, request, fds.as_slice(), timeout).await? {
            Reply::Plugged { slot } if usize::try_from(slot).is_ok_and(|slot| slot < MAX_SLOTS) => Ok(slot),
            _ => Err(VmError::Nonsense { action }),
        }
    }

    /// Ends the process now.
    pub fn kill(&self) {
        self.child.kill();
    }

    /// Something to end the process with that does not keep it.
    pub fn killer(&self) -> Killer {
        Killer { child: Arc::downgrade(&self.child), exit: self.exit.clone() }
    }

    /// PID of the VMM on the host.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// The process.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Waits for the end; any number of callers.
    pub async fn ended(&self) -> Arc<VmExit> {
        wait_for_exit(self.exit.clone()).await
    }

    async fn done(&self, action: &'static str, request: Request, timeout: Duration) -> Result<(), VmError> {
        match self.request(action, request, &[], timeout).await? {
            Reply::Done => Ok(()),
            _ => Err(VmError::Nonsense { action }),
        }
    }

    async fn request(
        &self,
        action: &'static str,
        request: Request,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<Reply, VmError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.pending).insert(id, sender);
        let exchange = async {
            self.channel.send(&Envelope { id, request }, fds).await?;
            tokio::select! {
                biased;
                Ok(result) = receiver => result.map_err(|failure| VmError::Refused { action, failure }),
                exit = self.ended() => Err(VmError::Ended(exit)),
            }
        };
        let result = tokio::time::timeout(timeout, exchange).await;
        lock(&self.pending).remove(&id);
        match result {
            Ok(Err(VmError::Channel(ChannelError::Socket(_)))) => Err(VmError::Ended(self.ended().await)),
            Ok(result) => result,
            Err(_) => Err(VmError::Timeout { action, timeout }),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // The watching task holds the child too, and may never run again.
        self.child.kill();
        self.child.reap();
    }
}

/// Ends a VM and learns why it ended, without owning it.
#[derive(Debug, Clone)]
pub struct Killer {
    child: Weak<Child>,
    exit: latest::Receiver<Option<Arc<VmExit>>>,
}

impl Killer {
    /// Ends the process now.
    pub fn kill(&self) {
        if let Some(child) = self.child.upgrade() {
            child.kill();
        }
    }

    /// Waits for the end.
    pub async fn ended(&self) -> Arc<VmExit> {
        wait_for_exit(self.exit.clone()).await
    }
}

/// Waits for the exit of a VM.
async fn wait_for_exit(mut exit: latest::Receiver<Option<Arc<VmExit>>>) -> Arc<VmExit> {
    match exit.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(exit)) => exit.clone(),
        // The watching task was dropped with its runtime.
        _ => Arc::new(VmExit::unknown()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
