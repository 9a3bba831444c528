//! What PID 1 does: makes the guest a place to serve from, serves, and ends the machine.

mod mounts;
mod settings;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::ports::{SHARED_MEMORY_DIR, SHARES_DIR};
use nacre_protocol::volumes::VOLUMES_DIR;
use rustix::process::{Pid, getpid};
use rustix::system::{RebootCommand, reboot};
use tokio::runtime::Builder;

use crate::agent::Agent;
use crate::container::{Guest, SharedMemory, Sockets, Volumes, raise_file_limit};
use crate::machine::boottime_us;
use crate::machine::network::{NetworkError, loopback_up};
use crate::process::{Children, reap_for_ever};
use crate::server::{self, ServerError};
use crate::stream::Unclaimed;
use crate::{log, sys};
use mounts::MountError;

/// Threads for calls that block; each container or exec that is being made or taken down holds one.
const BLOCKING_THREADS: usize = 32;

/// Where the files of sockets are that stand in for the host's.
const SOCKETS_DIR: &str = "/run/nacre/sockets";

/// How long writing back may take before the machine restarts all the same.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// A guest that does not come up, or whose server fails.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Not PID 1: the steps below would take the machine they run on apart.
    #[error("nacre-agent runs as PID 1 of a guest, and this is process {0}")]
    NotInit(u32),
    /// No standard descriptors.
    #[error("cannot open /dev/null")]
    StandardFds(#[source] std::io::Error),
    /// A file system could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The loopback link stays down.
    #[error(transparent)]
    Loopback(#[from] NetworkError),
    /// The runtime cannot be made.
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
    /// The reaper cannot hear of ended children.
    #[error("cannot watch for ended children")]
    Reaper(#[source] std::io::Error),
    /// The server failed.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// Runs the guest from here to its end.
///
/// # Errors
/// [`InitError`]; the caller says so and [`restarts`](restart) the machine.
pub fn run() -> Result<(), InitError> {
    let started_us = boottime_us();
    let pid = getpid();
    if pid != Pid::INIT {
        return Err(InitError::NotInit(pid.as_raw_nonzero().get().unsigned_abs()));
    }
    sys::fill_standard_fds().map_err(InitError::StandardFds)?;
    log::install();
    mounts::enter_read_only_root()?;
    mounts::mount_all()?;
    mounts::make_state_directories()?;
    settings::apply();
    if let Err(error) = raise_file_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    loopback_up()?;
    serve(guest(), started_us)
}

fn guest() -> Guest {
    Guest {
        agent_exe: PathBuf::from("/init"),
        cgroup_root: PathBuf::from(mounts::CGROUP_ROOT),
        state_dir: PathBuf::from(mounts::STATE_DIR),
        shares_dir: PathBuf::from(SHARES_DIR),
        children: Arc::new(Children::default()),
        shared_memory: Arc::new(SharedMemory::new(PathBuf::from(SHARED_MEMORY_DIR))),
        sockets: Arc::new(Sockets::new(PathBuf::from(SOCKETS_DIR))),
        volumes: Arc::new(Volumes::new(PathBuf::from(VOLUMES_DIR))),
        launcher: Arc::default(),
        tracers: Arc::default(),
    }
}

fn serve(guest: Guest, started_us: u64) -> Result<(), InitError> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(InitError::Runtime)?;
    let result = runtime.block_on(async {
        let reaper = reap_for_ever(Arc::clone(&guest.children));
        let agent = Arc::new(Agent::new(guest, Arc::new(Unclaimed::default()), started_us));
        tokio::select! {
            served = server::run(agent) => served.map_err(InitError::from),
            reaped = reaper => reaped.map_err(InitError::Reaper),
        }
    });
    // A blocking call that hangs must not keep the guest.
    runtime.shutdown_background();
    result
}

/// Ends every process and restarts the machine, which the VMM sees as the end of the guest (without ACPI there is
/// no power-off). Returns only where this is not PID 1, or the kernel refuses.
pub fn restart() {
    if getpid() != Pid::INIT {
        return;
    }
    // Every process but this one: what is left of containers, and children that were being made.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::Signal::SIGKILL);
    sync();
    if let Err(error) = reboot(RebootCommand::Restart) {
        tracing::error!(%error, "cannot restart the machine");
    }
}

/// Writes back what is dirty. A disk or share whose host side is gone would block for ever, hence the thread.
fn sync() {
    let (sender, done) = std::sync::mpsc::channel();
    let spawned = std::thread::Builder::new().spawn(move || {
        rustix::fs::sync();
        // The receiver may have given up.
        let _ = sender.send(());
    });
    if spawned.is_ok() && done.recv_timeout(SYNC_TIMEOUT).is_err() {
        tracing::error!("a file system cannot be written back");
    }
}
