//! A sandbox: one task that owns its state, and the handle by which others send it requests.
//!
//! ```text
//! Task API --Sandbox (handle)--> requests --> Core (one task) --> Machine --> VM, agent
//!                                   ^           |
//!    Watcher (one a process) -------+           +--> events, in the order in which they happened
//! ```
//!
//! A sandbox has one container, or those of a pod: the first makes the VM and ends it, the others join and leave. Each has
//! its init and any number of execs. [`create`] tells the story of a start, [`join`] that of a container that joins, [`exit`]
//! that of an end. Requests are carried out one after the other; only the waiting for a process's end is outside
//! of the task, in a watcher for each process, and the state of a process is read from the [`board`] without asking:
//! containerd gives up on a shim that takes two seconds to tell it.

mod board;
mod create;
mod exec;
mod exit;
mod join;
mod network;
mod phases;
mod pod;
mod process;
mod requests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use nacre_protocol::task::{Leave, OnExit};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub use create::CreateRequest;
pub use pod::PodStatus;
pub use process::{ExitInfo, ProcessId, ProcessStatus};
pub use requests::Sandbox;

use crate::agent::{ProcessName, Reach, StatsReply};
use crate::error::SandboxError;
use crate::hooks::Hooks;
use crate::machine::{Addition, Machine, Settings};
use crate::plan::pod::PodRequest;
use crate::stdio::{Drain, StdioRequest};
use crate::users::IdMaps;
use board::Board;
use process::Process;

/// Requests that may wait for the task; senders wait beyond.
const QUEUE: usize = 64;

/// Something that happened, for whoever publishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxEvent {
    /// A container exists.
    Created {
        /// What was asked for.
        request: Box<CreateRequest>,
        /// PID of the VMM.
        pid: u32,
    },
    /// A process runs.
    Started {
        /// The process.
        process: ProcessId,
        /// PID of the VMM.
        pid: u32,
    },
    /// An exec is prepared.
    ExecAdded {
        /// The exec.
        process: ProcessId,
    },
    /// A process ended.
    Exited {
        /// The process.
        process: ProcessId,
        /// PID of the VMM.
        pid: u32,
        /// How.
        exit: ExitInfo,
    },
    /// A container is forgotten.
    Deleted {
        /// Its init.
        process: ProcessId,
        /// PID of the VMM.
        pid: u32,
        /// How it had ended.
        exit: ExitInfo,
    },
    /// The memory limit ended a process.
    Oom {
        /// The container.
        container: String,
    },
    /// The container is frozen.
    Paused {
        /// The container.
        container: String,
    },
    /// The container goes on.
    Resumed {
        /// The container.
        container: String,
    },
    /// The sandbox is over, and everything is taken down: the shim ends.
    Finished,
}

type Reply<T> = oneshot::Sender<Result<T, SandboxError>>;

/// What the task is asked.
#[derive(Debug)]
enum Request {
    Create(Box<CreateRequest>, Reply<u32>),
    Start(ProcessId, Reply<u32>),
    Signal(ProcessId, u32, Reach, Reply<()>),
    Exec(ProcessId, Vec<u8>, StdioRequest, Reply<()>),
    Wait(ProcessId, Reply<ExitInfo>),
    Delete(ProcessId, Reply<(u32, ExitInfo)>),
    Resize(ProcessId, u32, u32, Reply<()>),
    CloseStdin(ProcessId, Reply<()>),
    Leave(String, Leave, Reply<()>),
    Pause(String, Reply<()>),
    Resume(String, Reply<()>),
    Update(String, Vec<u8>, Reply<()>),
    Stats(String, Reply<StatsReply>),
    Pids(String, Reply<Vec<u32>>),
    /// Whether even a container that runs is taken down; answers whether the sandbox is over.
    Shutdown(Force, Reply<bool>),
    StartPod(Box<PodRequest>, Reply<u32>),
    StopPod(Reply<()>),
    WaitPod(Reply<ExitInfo>),
    PodStats(Reply<StatsReply>),
    /// From the watcher of a pod's VM: why it ended.
    VmEnded(String),
    /// From a watcher.
    Exited {
        name: ProcessName,
        exit: ExitInfo,
        outputs: Drain,
    },
    /// From the watcher of events, of a container.
    Oom(String),
    /// From the watcher of the network namespace.
    NetworkChanged,
}

/// Whether a shutdown ends what still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Only an empty sandbox ends.
    Empty,
    /// Everything ends.
    Now,
}

/// A container.
struct Container {
    bundle: PathBuf,
    on_exit: OnExit,
    /// PID of the VMM, also after its end.
    pid: u32,
    init: Process,
    execs: BTreeMap<String, Process>,
    place: Place,
    hooks: Hooks,
    /// It has been told that the memory limit hit this container.
    oom_told: bool,
}

/// What a container is to the sandbox.
enum Place {
    /// The first: the VM is its own.
    First(Box<phases::Times>),
    /// It joined, and has brought this along.
    Joined(Option<Addition>),
}

/// What the sandbox keeps of its first container, or of the pod that it is without one, as long as that is there.
struct First {
    id: String,
    /// Whether others may join.
    is_pod: bool,
    /// PID of its init in the guest; none: the sandbox has no container of its own.
    guest_pid: Option<u32>,
    network: Option<PathBuf>,
    memory_mib: u32,
    /// Some container that joined has processes of its own.
    own_processes: bool,
    /// How many have joined so far.
    joined: u64,
    /// Least value of those who have joined.
    oom_score_adj: Option<i32>,
    /// Kernel parameters that those who join set.
    sysctls: BTreeMap<String, String>,
    /// Ids of its user namespace, where it has one.
    users: Option<IdMaps>,
}

/// The task.
struct Core {
    settings: Settings,
    requests: mpsc::Receiver<Request>,
    sender: mpsc::WeakSender<Request>,
    events: mpsc::Sender<SandboxEvent>,
    machine: Option<Machine>,
    /// Takes the machine down.
    ending: Option<JoinHandle<()>>,
    first: Option<First>,
    containers: BTreeMap<String, Container>,
    /// The sandbox itself, where it was made without a container of its own.
    pod: Option<pod::Pod>,
    board: Board,
    closed: bool,
}

/// Starts the task of a sandbox that has no container yet. Events wait in a channel of bounded length; who takes them
/// out must not wait for the sandbox.
pub fn spawn(settings: Settings) -> (Sandbox, mpsc::Receiver<SandboxEvent>) {
    let (sender, requests) = mpsc::channel(QUEUE);
    let (events, event_receiver) = mpsc::channel(QUEUE);
    let weak = sender.downgrade();
    let board = Board::default();
    let kill = settings.config.timeouts.kill();
    let core = Core {
        settings,
        requests,
        sender: weak,
        events,
        machine: None,
        ending: None,
        first: None,
        containers: BTreeMap::new(),
        pod: None,
        board: board.clone(),
        closed: false,
    };
    tokio::spawn(core.run());
    (Sandbox::new(sender, board, kill), event_receiver)
}

impl Core {
    async fn run(mut self) {
        while let Some(request) = self.requests.recv().await {
            self.handle(request).await;
            self.show();
            if self.closed {
                break;
            }
        }
        // Also when every handle is gone: nothing outlives the task.
        self.take_down_all().await;
        self.publish(SandboxEvent::Finished).await;
    }

    async fn handle(&mut self, request: Request) {
        match request {
            Request::Create(request, reply) => answer(reply, self.create(*request).await),
            Request::Start(process, reply) => answer(reply, self.start(&process).await),
            Request::Signal(process, signal, reach, reply) => {
                answer(reply, self.signal(&process, signal, reach).await);
            }
            Request::Exec(process, spec, stdio, reply) => {
                answer(reply, self.exec(&process, spec, stdio).await)
            }
            Request::Wait(process, reply) => self.wait(&process, reply),
            Request::Delete(process, reply) => answer(reply, self.delete(&process).await),
            Request::Resize(process, columns, rows, reply) => {
                answer(reply, self.resize(&process, columns, rows).await);
            }
            Request::CloseStdin(process, reply) => answer(reply, self.close_stdin(&process)),
            Request::Leave(container, leave, reply) => answer(reply, self.leave(&container, &leave).await),
            Request::Pause(container, reply) => answer(reply, self.pause(&container).await),
            Request::Resume(container, reply) => answer(reply, self.resume(&container).await),
            Request::Update(container, resources, reply) => {
                answer(reply, self.update(&container, resources).await);
            }
            Request::Stats(container, reply) => answer(reply, self.stats(&container).await),
            Request::Pids(container, reply) => answer(reply, self.pids(&container)),
            Request::Shutdown(force, reply) => answer(reply, Ok(self.shutdown(force))),
            Request::StartPod(request, reply) => answer(reply, self.start_pod(&request).await),
            Request::StopPod(reply) => answer(reply, self.stop_pod().await),
            Request::WaitPod(reply) => self.wait_pod(reply),
            Request::PodStats(reply) => answer(reply, self.pod_stats().await),
            Request::VmEnded(reason) => self.vm_ended(reason),
            Request::Exited { name, exit, outputs } => self.exited(&name, exit, outputs).await,
            Request::Oom(container) => self.out_of_memory(container).await,
            Request::NetworkChanged => self.network_changed().await,
        }
    }

    /// Brings the board up to date; before anybody can act on an answer, so that what is read there is never older.
    fn show(&self) {
        self.board.show(self.first.as_ref(), self.machine.as_ref(), &self.containers, self.pod.as_ref());
    }

    async fn publish(&self, event: SandboxEvent) {
        self.show();
        // The receiver is gone only when the whole shim ends.
        let _ = self.events.send(event).await;
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, SandboxError> {
        self.containers.get_mut(id).ok_or_else(|| no_container(id))
    }

    fn process(&mut self, id: &ProcessId) -> Result<&mut Process, SandboxError> {
        self.container(&id.container)?.process(id)
    }

    /// A container, and the machine that it runs in.
    fn running(&mut self, id: &str) -> Result<(&mut Container, &Machine), SandboxError> {
        let container = self.containers.get_mut(id).ok_or_else(|| no_container(id))?;
        let machine = self.machine.as_ref().ok_or_else(|| SandboxError::NotRunning(id.to_owned()))?;
        Ok((container, machine))
    }

    fn shutdown(&mut self, force: Force) -> bool {
        let lives = self.pod.as_ref().is_some_and(|pod| pod.exit.is_none());
        self.closed |= force == Force::Now || (self.containers.is_empty() && !lives);
        self.closed
    }
}

/// A caller that went away needs no answer.
fn answer<T>(reply: Reply<T>, result: Result<T, SandboxError>) {
    let _ = reply.send(result);
}

impl Container {
    fn process(&mut self, id: &ProcessId) -> Result<&mut Process, SandboxError> {
        if id.exec.is_empty() {
            return Ok(&mut self.init);
        }
        let found = self.execs.get_mut(&id.exec);
        found.ok_or_else(|| SandboxError::NoExec(crate::text::harmless(&id.exec, 128)))
    }
}

fn no_container(id: &str) -> SandboxError {
    SandboxError::NoContainer(crate::text::harmless(id, 128))
}

/// Now, on both clocks.
fn now() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}

#[cfg(test)]
mod tests;
