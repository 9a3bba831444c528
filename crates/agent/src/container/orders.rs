//! What the agent and its child say to each other over their socket pair.
//!
//! ```text
//! agent                       first stage (forked by the launcher)       child
//!   | orders, descriptors -----> |  limits, namespaces to be joined first
//!   | <--------------- prepared  |
//!   | go ----------------------> |  clone3 -------------------------------> |
//!   | <--- forked (pid, pidfd)   |                                          |
//!   |                            exits                                      |
//!   | proceed ------------------------------------------------------------> | the steps
//!   | <------------------------------------------- terminal (master) ------ |
//!   | <------------------------------------------- ready, or failed ------- |
//!   | start --------------------------------------------------------------> | exec
//!   | <-------------------------------------- end of file, or failed ------ |
//! ```
//!
//! A `SOCK_SEQPACKET` pair, JSON messages. The orders themselves are a memfd (JSON, then the seccomp filter), since
//! arguments and environment may be larger than a packet. End of file at any time tells the child to exit.

use serde::{Deserialize, Serialize};

use super::plan::{ContainerPlan, FdRef, IdMap, ProcessPlan};

/// Longest message in either direction.
pub(crate) const MAX_MESSAGE: usize = 16 * 1024;
/// Longest orders.
pub(crate) const MAX_ORDERS: usize = 16 << 20;
/// Most descriptors of the orders: SCM_MAX_FD is 253.
pub(crate) const MAX_FDS: usize = 253;

/// Everything that a child does.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) task: Task,
    pub(crate) process: ProcessPlan,
    pub(crate) stdio: StdioOrders,
    pub(crate) personality: Option<u32>,
    /// Directories to be born in: the first one that takes a process.
    pub(crate) cgroups: Vec<FdRef>,
    /// Others may see the child while it waits for its start, and attach: it is confined before.
    pub(crate) watched: bool,
}

/// The two kinds of child.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// The init of a new container.
    Init(Box<InitTask>),
    /// A process in a running one.
    Exec(ExecTask),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InitTask {
    pub(crate) plan: ContainerPlan,
    /// Detached mount of the root file system.
    pub(crate) rootfs: FdRef,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecTask {
    /// pidfd of the container's init.
    pub(crate) init: FdRef,
    /// CLONE_NEW* of the namespaces to join.
    pub(crate) namespaces: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum StdioOrders {
    Files { stdin: FdRef, stdout: FdRef, stderr: FdRef },
    Terminal { columns: u16, rows: u16 },
}

/// Agent to child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// To the launcher: fork a first stage, whose channel comes along.
    Converse,
    /// To the launcher: make the namespaces of the sandbox and answer with [`Report::Namespaces`].
    MakeNamespaces { uid_map: Vec<IdMap>, gid_map: Vec<IdMap> },
    /// To the launcher: enter the namespaces whose files come along, and whatever it forks with it. No answer.
    Enter,
    /// To a first stage, in place of orders: make a PID namespace whose first process is in the cgroup that comes along, and in the
    /// user namespace after it where one does. It answers with [`Report::Namespaces`], and [`Report::Ready`] once it is confined.
    MakeProcessNamespace,
    /// The orders are `json` bytes, then the filter, in the memfd that is the first descriptor.
    Orders { json: usize },
    /// Fork.
    Go,
    /// To the child: the agent knows of it, the steps may begin.
    Proceed,
    /// Exec the program.
    Start,
}

/// Child to agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The sandbox's namespaces come along: user, network, IPC, UTS; or the one of its processes.
    Namespaces,
    /// The first stage is about to fork.
    Prepared,
    /// The child exists; its pidfd comes along.
    Forked { pid: i32 },
    /// The terminal's master comes along.
    Terminal,
    /// All is set up; waits for [`Command::Start`].
    Ready,
    /// A step failed; the child exits.
    Failed(Failure),
}

/// Why a child could not go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// Name of the step.
    pub(crate) step: String,
    /// What went wrong, causes included.
    pub(crate) message: String,
    pub(crate) kind: FailureKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FailureKind {
    /// The guest is to blame.
    Internal,
    /// The configuration or the image is to blame.
    Invalid,
    /// The program is to blame.
    Exec(super::start::ExecError),
}
