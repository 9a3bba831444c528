//! The child that becomes a container's process: a single-threaded copy of the agent that does nothing else.
//!
//! ```text
//! agent ── posix_spawn, once ──> launcher: waits for work
//!                                  └── clone3 ──> first stage: limits, namespaces to be joined before the fork
//!                                                   └── clone3 ──> child: the steps below, then exec
//! ```
//!
//! The forks come after the re-execution, so that the child has the launcher's non-dumpable memory: at no moment
//! can a process of the container attach to it, read its memory or open its descriptors (C15). Those that see the child and have
//! CAP_SYS_PTRACE of the guest could; they stand still meanwhile ([`super::tracers`]). The parent of all
//! three is the agent (CLONE_PARENT), which reaps them like any other.
//!
//! Each step is a function with its own error; the first that fails is reported by name and the child exits.
//! Everything below the container's root is reached through descriptors, never by joining paths ([`root`]).

mod copy_up;
mod credentials;
mod devices;
mod error;
mod identity;
mod init;
mod mounts;
mod namespaces;
mod pivot;
mod program;
mod root;
mod sandbox;
mod settings;
mod stage;
mod stdio;
mod terminal;
mod visibility;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::channel;
use super::orders::{Failure, InitTask, Report, StdioOrders};
use super::passwd::Identity;
use super::plan::{FdRef, FirstProcess, ProcessPlan};
use super::seccomp::Filter;
use error::StepError;
use root::Root;

/// `nacre-agent launcher`: forks the first stage of every container's init and exec, for as long as the agent wants.
pub fn launcher_main() -> u8 {
    stage::launcher()
}

/// Exit status of a child that failed before its program was to blame.
const SETUP_FAILED: u8 = 125;

type Step = (&'static str, fn(&mut Child) -> Result<(), StepError>);

/// Steps of a container's init, in order.
const INIT_STEPS: &[Step] = &[
    ("wait for the agent", namespaces::wait_for_agent),
    ("become root", namespaces::become_root),
    ("start session", settings::start_session),
    ("join namespaces", namespaces::join),
    ("set hostname", settings::set_names),
    ("set sysctls", settings::set_sysctls),
    ("attach root file system", pivot::attach),
    ("mount", mounts::mount_all),
    ("make devices", devices::make_all),
    ("open terminal", terminal::open),
    ("hide paths", visibility::hide),
    ("enter root file system", pivot::enter),
    ("resolve user", identity::resolve),
    ("enter working directory", program::enter_cwd_or_make),
    ("connect streams", stdio::connect),
    ("set limits", settings::set_limits),
    ("set credentials", credentials::drop_to),
    ("find program", program::find),
];

/// Steps of a process in a running container, in order.
const EXEC_STEPS: &[Step] = &[
    ("wait for the agent", namespaces::wait_for_agent),
    ("join namespaces", namespaces::join_container),
    ("start session", settings::start_session),
    ("open root file system", pivot::open_current),
    ("open terminal", terminal::open),
    ("resolve user", identity::resolve),
    ("enter working directory", program::enter_cwd),
    ("connect streams", stdio::connect),
    ("set limits", settings::set_limits),
    ("set credentials", credentials::drop_to),
    ("find program", program::find),
];

/// The task of a child after its fork.
enum Role {
    Init(Box<InitTask>),
    Exec { init: OwnedFd, namespaces: u64 },
}

/// What the steps work on.
struct Child {
    channel: OwnedFd,
    fds: Fds,
    role: Role,
    process: ProcessPlan,
    personality: Option<u32>,
    filter: Option<Filter>,
    /// To be confined before it waits for its start.
    watched: bool,
    stdio: StdioOrders,
    /// The root file system, once it is attached.
    root: Option<Root>,
    /// tmpfs mounts that become read-only once everything in them is made.
    read_only_later: Vec<OwnedFd>,
    /// The slave, once it is open.
    terminal: Option<OwnedFd>,
    /// Once it is resolved.
    identity: Option<Identity>,
    /// Path of the program, once it is found.
    program: Option<String>,
}

impl Child {
    /// Runs the steps, waits for the start, and executes the program. Returns only on failure.
    fn run(mut self) -> u8 {
        let steps = match self.role {
            Role::Init(_) => INIT_STEPS,
            Role::Exec { .. } => EXEC_STEPS,
        };
        for (name, step) in steps {
            if let Err(error) = step(&mut self) {
                return fail(self.channel.as_fd(), name, error);
            }
        }
        // Whatever is left open goes with the exec, and nothing of it stays reachable until then but the channel.
        self.fds = Fds::default();
        self.root = None;
        self.terminal = None;
        program::wait_and_exec(self)
    }

    fn init(&self) -> Result<&InitTask, StepError> {
        match &self.role {
            Role::Init(task) => Ok(task),
            Role::Exec { .. } => Err(StepError::Orders("a step of init in an exec")),
        }
    }

    /// An exec joins what is there: only a new container can have an init.
    fn first_process(&self) -> FirstProcess {
        match &self.role {
            Role::Init(task) => task.plan.first_process,
            Role::Exec { .. } => FirstProcess::Program,
        }
    }

    fn root(&self) -> Result<&Root, StepError> {
        self.root.as_ref().ok_or(StepError::Orders("the root file system is not open yet"))
    }

    fn identity(&self) -> Result<&Identity, StepError> {
        self.identity.as_ref().ok_or(StepError::Orders("the user is not resolved yet"))
    }
}

/// Reports a failure and gives the exit status that goes with it.
fn fail(channel: BorrowedFd<'_>, step: &str, error: StepError) -> u8 {
    let message = error.message();
    let status = match &error {
        StepError::Exec(error) => u8::try_from(error.exit_status()).unwrap_or(SETUP_FAILED),
        _ => SETUP_FAILED,
    };
    let failure = Failure { step: step.to_owned(), message: cut(message), kind: error.kind() };
    // Where the agent is gone there is nobody to tell.
    let _ = channel::write(channel, &Report::Failed(failure));
    status
}

/// Paths come from the image; a message has room for a few of the longest.
fn cut(mut message: String) -> String {
    if message.len() > 4096 {
        let end = (0..=4096).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        message.truncate(end);
    }
    message
}

/// The descriptors of the orders, each taken once.
#[derive(Default)]
struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    fn take(&mut self, at: FdRef) -> Result<OwnedFd, StepError> {
        let slot = usize::try_from(at).ok().and_then(|at| self.0.get_mut(at));
        slot.and_then(Option::take).ok_or(StepError::Orders("a descriptor is missing"))
    }

    fn get(&self, at: FdRef) -> Option<BorrowedFd<'_>> {
        self.0.get(usize::try_from(at).ok()?)?.as_ref().map(AsFd::as_fd)
    }
}
