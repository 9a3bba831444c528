//! Containers: what the base of the agent asks for, and what it gets.
//!
//! This module owns namespaces, cgroup, root file system, devices, capabilities, seccomp, users and the re-executed
//! children (`nacre-agent launcher` and what it forks). It does not own the process table, exit statuses, standard
//! streams or RPC: those are [`crate::process`], [`crate::stream`] and [`crate::service`].
//!
//! ```text
//! service -> warm_up()      once, ahead of the first container      (blocking)
//!         -> create()       child made, set up, waits before exec     (blocking; runs on a blocking thread)
//!         -> Starter::start child told to exec; Ok, or why exec failed (blocking)
//!         -> create_exec()  the same for a further process
//!         -> Container::remove  mounts and cgroup taken down, all processes have ended
//! ```
//!
//! Rules between the two sides:
//!
//! - Every function here may block and is called on a blocking thread, never on the runtime's own. Several may
//!   run at once, for different containers.
//! - PID 1 reaps every process, so nothing here waits for a pid. A child that the agent forks is made inside
//!   [`Children::spawn`], which registers it before the reaper can see it end. Its exit arrives at
//!   [`Child`]; a blocking wait without reaping is [`Child::wait_ended`].
//! - This process never forks code of its own: `Guest::agent_exe` is executed as the launcher (posix_spawn), which
//!   is single-threaded and forks the children as its siblings.
//!   The child's exit signal is SIGCHLD (waitpid(2) without `__WALL` sees no other).
//!   The program starts with default signal dispositions (PID 1 ignores SIGPIPE) and an empty signal mask, and
//!   its user may open its own standard streams (pipes belong to root at first).
//! - Where exec fails, the child exits with [`ExecError::exit_status`], so that the status that is reaped and the
//!   answer to start agree.
//! - Paths come from [`Guest`], so that tests can use a scratch directory.
//! - On an error everything that was made is undone before the call returns.

mod cgroup;
mod channel;
mod child;
mod create;
mod error;
mod exec;
mod files;
mod handle;
mod launch;
mod orders;
mod passwd;
mod plan;
mod rootfs;
mod seccomp;
mod shared_memory;
mod sockets;
mod start;
mod sys;
mod tracers;
mod volumes;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nacre_protocol::id::ContainerId;

use crate::process::{Child, Children};

pub use cgroup::{Cgroup, CgroupError, InvalidResources};
pub use channel::ChannelError;
pub use child::launcher_main;
pub use create::{create, warm_up};
pub use error::CreateError;
pub use exec::create_exec;
pub use files::BundleFile;
pub use handle::{Container, RemoveError};
pub use launch::{Launcher, Namespaces};
pub use plan::{IdMaps, InvalidProcess, InvalidSpec};
pub use rootfs::RootfsError;
pub use seccomp::InvalidProfile;
pub use shared_memory::SharedMemory;
pub use sockets::{SocketFile, Sockets};
pub use start::{ExecError, Starter};
pub(crate) use sys::task::raise_file_limit;
pub use tracers::Tracers;
pub use volumes::{VolumeContent, VolumeEntry, VolumeError, Volumes};

/// The guest as this module sees it: made once at boot.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The agent's own binary on a read-only mount (C02): `/init` in the guest. Executed as
    /// `nacre-agent launcher`; never `/proc/self/exe`, which for PID 1 is on a writable mount.
    pub agent_exe: PathBuf,
    /// cgroup v2 root, all controllers enabled for its children. A container's cgroup is `nacre/<id>` under it.
    pub cgroup_root: PathBuf,
    /// tmpfs of mode 0700 for root file systems and mount points: `<state_dir>/<container id>/`.
    pub state_dir: PathBuf,
    /// Where the virtio-fs share is mounted.
    pub shares_dir: PathBuf,
    /// Every direct child of the agent.
    pub children: Arc<Children>,
    /// What the containers of a pod share.
    pub shared_memory: Arc<SharedMemory>,
    /// Those that stand in for the host's.
    pub sockets: Arc<Sockets>,
    /// Volumes that came by value.
    pub volumes: Arc<Volumes>,
    /// Forks the children of containers.
    pub launcher: Arc<Launcher>,
    /// Containers that could attach to them.
    pub tracers: Arc<Tracers>,
}

/// What a container is made of.
#[derive(Debug)]
pub struct CreateInput {
    /// Names its cgroup and its directory under `state_dir`.
    pub id: ContainerId,
    /// OCI config.json as it came from the host; hostile in no way, but checked and bounded.
    pub spec_json: Vec<u8>,
    /// Where `/` comes from.
    pub rootfs: RootfsSource,
    /// Sources of bind mounts that came with the request; no two have the same name.
    pub files: Vec<BundleFile>,
    /// Disks that it uses as they are.
    pub devices: Vec<BlockDevice>,
    /// Standard streams of its init.
    pub stdio: ChildStdio,
}

/// A disk as a device node of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// virtio-blk serial.
    pub disk_id: String,
    /// Where the node goes.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner of the node.
    pub uid: u32,
    /// Group of the node.
    pub gid: u32,
    /// No writing, whatever the node says.
    pub read_only: bool,
}

/// A further process in a container.
#[derive(Debug)]
pub struct ExecInput {
    /// OCI process object as JSON.
    pub process_json: Vec<u8>,
    /// Its standard streams.
    pub stdio: ChildStdio,
}

/// Standard streams that a child gets.
#[derive(Debug)]
pub enum ChildStdio {
    /// Three descriptors, for numbers 0, 1 and 2: pipes or /dev/null. They are blocking descriptors; the
    /// parent's copies are closed before the create call returns.
    Files {
        /// Number 0.
        stdin: OwnedFd,
        /// Number 1.
        stdout: OwnedFd,
        /// Number 2.
        stderr: OwnedFd,
    },
    /// A pseudo terminal made by the child from the container's own `/dev/pts`, of this size; its master comes
    /// back in [`CreatedProcess::terminal`].
    Terminal {
        /// Width; 0 where unknown.
        columns: u16,
        /// Height; 0 where unknown.
        rows: u16,
    },
}

/// Where a container's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootfsSource {
    /// EROFS blobs on one virtio-blk device, bottom layer first, under a tmpfs upper directory.
    Layered {
        /// virtio-blk serial.
        disk_id: String,
        /// Partitions to make, in bytes.
        layers: Vec<LayerExtent>,
        /// Size limit of the tmpfs; 0: the kernel's default (half of the memory).
        upper_limit_bytes: u64,
    },
    /// An ext4 file system, alone on its disk.
    Disk {
        /// virtio-blk serial.
        disk_id: String,
        /// Mounted so; the device refuses writes too.
        read_only: bool,
    },
    /// `<shares_dir>/<name>`; `name` is one path component.
    Shared {
        /// The component.
        name: String,
    },
}

/// One layer's place on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerExtent {
    /// Multiple of 512.
    pub offset_bytes: u64,
    /// Multiple of 512, not 0.
    pub length_bytes: u64,
}

/// A process that is set up and waits before exec.
#[derive(Debug)]
pub struct CreatedProcess {
    /// The process that will exec the program: pid, pidfd and exit status.
    pub child: Child,
    /// Lets it go on.
    pub starter: Starter,
    /// Master of its pseudo terminal, where it was asked for.
    pub terminal: Option<OwnedFd>,
}

/// Result of creating a container.
#[derive(Debug)]
pub struct CreatedContainer {
    /// Its init.
    pub init: CreatedProcess,
    /// Everything else about it: shared with calls that run on blocking threads.
    pub container: Arc<Container>,
    /// Microseconds that mounting the root file system took.
    pub rootfs_us: u64,
    /// Microseconds of the whole call.
    pub create_us: u64,
}
