//! What keeps a taken-over VMM harmless (B2 in `docs/threat-model.md`).
//!
//! Once every descriptor is there and before the guest runs: own namespaces with nothing in them, an unprivileged user without
//! capabilities, Landlock without a rule, and from then on each thread with its [`seccomp`] list. The process makes this jail around
//! itself; whoever starts it needs no further privilege than to start it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
use nacre_protocol::vm::JailConfig;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};

use crate::sys;

pub mod seccomp;

/// Most open descriptors: vsock connections (1023), devices and vCPUs.
const MAX_OPEN_FILES: u64 = 4096;

/// Highest number that a capability can have (the kernel's sets are 64 bits wide).
const CAPABILITIES: u32 = 64;

/// A step of the jail that failed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// New namespaces.
    #[error("the process could not leave its namespaces")]
    Unshare(#[source] nix::Error),
    /// The empty root.
    #[error("the process could not be given an empty root: {0}")]
    Root(&'static str, #[source] nix::Error),
    /// The user.
    #[error("the process could not become the jail's user: {0}")]
    User(&'static str, #[source] nix::Error),
    /// Capabilities.
    #[error("the process could not give up its capabilities")]
    Capabilities(#[source] io::Error),
    /// Limits.
    #[error("the process could not be limited: {0}")]
    Limit(&'static str, #[source] nix::Error),
    /// Landlock.
    #[error("the process could not be kept from files by Landlock")]
    Landlock(#[from] landlock::RulesetError),
}

/// Set once the process is jailed: from then on each new thread restricts itself before it runs.
static SHUT: AtomicBool = AtomicBool::new(false);

/// Whether new threads must restrict themselves.
pub(crate) fn is_shut() -> bool {
    SHUT.load(Ordering::Acquire)
}

/// Shuts the jail around the process, which has one thread. Without a configuration (tests without root) only the
/// steps that need no privilege are taken; they include every system call list.
///
/// # Errors
/// [`JailError`]; the process must then end.
pub fn shut(config: Option<&JailConfig>) -> Result<(), JailError> {
    if let Some(config) = config {
        leave_namespaces()?;
        empty_root()?;
        become_user(config)?;
    }
    limit()?;
    deny_files()?;
    SHUT.store(true, Ordering::Release);
    Ok(())
}

/// The process id namespace is the owner's to make: only a child of its maker is in it.
fn leave_namespaces() -> Result<(), JailError> {
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(flags).map_err(JailError::Unshare)
}

/// The new root: a file system of its own with nothing in it, which nobody may change.
fn empty_root() -> Result<(), JailError> {
    const NONE: Option<&str> = None;
    // Any directory that is there on every host will do to mount on.
    const PLACE: &str = "/proc";
    let step = |name| move |error| JailError::Root(name, error);
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(step("mounts made private"))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=0"))
        .map_err(step("mount"))?;
    chdir(PLACE).map_err(step("change to it"))?;
    pivot_root(".", ".").map_err(step("pivot_root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("old root detached"))?;
    chdir("/").map_err(step("change to the root"))
}

fn become_user(config: &JailConfig) -> Result<(), JailError> {
    let step = |name| move |error| JailError::User(name, error);
    for capability in 0..CAPABILITIES {
        if !sys::drop_bounding_capability(capability).map_err(JailError::Capabilities)? {
            break;
        }
    }
    let (uid, gid) = (Uid::from_raw(config.uid), Gid::from_raw(config.gid));
    setgroups(&[]).map_err(step("setgroups"))?;
    setresgid(gid, gid, gid).map_err(step("setresgid"))?;
    setresuid(uid, uid, uid).map_err(step("setresuid"))?;
    sys::drop_capabilities().map_err(JailError::Capabilities)
}

fn limit() -> Result<(), JailError> {
    let step = |name| move |error| JailError::Limit(name, error);
    // Nothing of the guest ends up in a core dump, and nobody of the same user may trace this process.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("core"))?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(step("open files"))?;
    let files = hard.min(MAX_OPEN_FILES);
    setrlimit(Resource::RLIMIT_NOFILE, files, files).map_err(step("open files"))?;
    prctl::set_dumpable(false).map_err(step("dumpable"))?;
    prctl::set_no_new_privs().map_err(step("no_new_privs"))
}

/// No file, no TCP port, no abstract socket, no signal to others; as much of it as the kernel knows.
fn deny_files() -> Result<(), JailError> {
    const NEWEST: ABI = ABI::V6;
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()?;
    Ok(())
}
