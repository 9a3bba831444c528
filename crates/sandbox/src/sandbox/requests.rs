//! The handle: one method for each request.

use std::time::Duration;

use nacre_protocol::task::Leave;
use tokio::sync::{mpsc, oneshot};

use super::board::Board;
use super::{CreateRequest, ExitInfo, Force, PodStatus, ProcessId, ProcessStatus, Reply, Request};
use crate::agent::{Reach, StatsReply};
use crate::error::SandboxError;
use crate::plan::pod::PodRequest;
use crate::stdio::StdioRequest;

/// SIGKILL.
pub(super) const SIGKILL: u32 = 9;

type Result<T> = std::result::Result<T, SandboxError>;

/// Sends requests to a sandbox's task. The sandbox ends with its last handle.
#[derive(Debug, Clone)]
pub struct Sandbox {
    requests: mpsc::Sender<Request>,
    board: Board,
    /// For a guest to obey, before its VM is ended.
    kill: Duration,
}

impl Sandbox {
    pub(super) fn new(requests: mpsc::Sender<Request>, board: Board, kill: Duration) -> Self {
        Self { requests, board, kill }
    }

    /// Ends the VM where the container has not ended in time. Not a request: those wait for what a guest answers, and one
    /// that does not obey may not answer either (H12).
    fn insist(&self, container: String) {
        let (board, kill) = (self.board.clone(), self.kill);
        tokio::spawn(async move {
            tokio::time::sleep(kill).await;
            board.kill_unless_stopped(&container);
        });
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| SandboxError::Closed)?;
        answer.await.map_err(|_| SandboxError::Closed)?
    }

    /// Boots the VM and makes the container; its VMM's PID.
    ///
    /// # Errors
    /// See [`SandboxError`]. After one, nothing is left.
    pub async fn create(&self, request: CreateRequest) -> Result<u32> {
        self.ask(|reply| Request::Create(Box::new(request), reply)).await
    }

    /// Boots the VM of a pod, without a container of its own; its VMM's PID.
    ///
    /// # Errors
    /// See [`SandboxError`]. After one, nothing is left.
    pub async fn start_pod(&self, request: PodRequest) -> Result<u32> {
        self.ask(|reply| Request::StartPod(Box::new(request), reply)).await
    }

    /// Ends the VM of a pod.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn stop_pod(&self) -> Result<()> {
        if let Some(pod) = self.board.first() {
            self.insist(pod);
        }
        self.ask(Request::StopPod).await
    }

    /// Waits for the end of a pod's VM, before or after it.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn wait_pod(&self) -> Result<ExitInfo> {
        self.ask(Request::WaitPod).await
    }

    /// The sum of the figures of a pod's containers.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn pod_stats(&self) -> Result<StatsReply> {
        self.ask(Request::PodStats).await
    }

    /// What is known of the pod, where the sandbox is one without a container of its own.
    pub fn pod_status(&self) -> Option<PodStatus> {
        self.board.pod()
    }

    /// Lets a process execute its program; its VMM's PID.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn start(&self, process: ProcessId) -> Result<u32> {
        self.ask(|reply| Request::Start(process, reply)).await
    }

    /// What is known of a process, without waiting for the request that is being carried out.
    ///
    /// # Errors
    /// [`SandboxError::NoContainer`] and [`SandboxError::NoExec`].
    pub fn status(&self, process: &ProcessId) -> Result<ProcessStatus> {
        self.board.read(process)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn signal(&self, process: ProcessId, signal: u32, reach: Reach) -> Result<()> {
        if signal == SIGKILL && process.exec.is_empty() {
            self.insist(process.container.clone());
        }
        self.ask(|reply| Request::Signal(process, signal, reach, reply)).await
    }

    /// Prepares an exec from an OCI process object.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn exec(&self, process: ProcessId, process_json: Vec<u8>, stdio: StdioRequest) -> Result<()> {
        self.ask(|reply| Request::Exec(process, process_json, stdio, reply)).await
    }

    /// Waits for the end of a process, before or after it.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn wait(&self, process: ProcessId) -> Result<ExitInfo> {
        self.ask(|reply| Request::Wait(process, reply)).await
    }

    /// Forgets a process; its VMM's PID and how it ended.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn delete(&self, process: ProcessId) -> Result<(u32, ExitInfo)> {
        self.ask(|reply| Request::Delete(process, reply)).await
    }

    /// Tells a terminal its size.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn resize(&self, process: ProcessId, columns: u32, rows: u32) -> Result<()> {
        self.ask(|reply| Request::Resize(process, columns, rows, reply)).await
    }

    /// The caller writes no more to a process's stdin.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn close_stdin(&self, process: ProcessId) -> Result<()> {
        self.ask(|reply| Request::CloseStdin(process, reply)).await
    }

    /// The caller that made a process leaves it to itself.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn leave(&self, container: String, leave: Leave) -> Result<()> {
        self.ask(|reply| Request::Leave(container, leave, reply)).await
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn pause(&self, container: String) -> Result<()> {
        self.ask(|reply| Request::Pause(container, reply)).await
    }

    /// Lets a frozen container go on.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn resume(&self, container: String) -> Result<()> {
        self.ask(|reply| Request::Resume(container, reply)).await
    }

    /// Changes limits; OCI `linux.resources` as JSON.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn update(&self, container: String, resources_json: Vec<u8>) -> Result<()> {
        self.ask(|reply| Request::Update(container, resources_json, reply)).await
    }

    /// Figures of a container.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn stats(&self, container: String) -> Result<StatsReply> {
        self.ask(|reply| Request::Stats(container, reply)).await
    }

    /// PIDs on the host: those of the VMM.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn pids(&self, container: String) -> Result<Vec<u32>> {
        self.ask(|reply| Request::Pids(container, reply)).await
    }

    /// Ends the sandbox, if it is empty or by force; whether it ends. The last event is
    /// [`SandboxEvent::Finished`](super::SandboxEvent::Finished).
    ///
    /// # Errors
    /// [`SandboxError::Closed`] when it has ended.
    pub async fn shutdown(&self, force: Force) -> Result<bool> {
        if force == Force::Now
            && let Some(container) = self.board.first()
        {
            self.insist(container);
        }
        self.ask(|reply| Request::Shutdown(force, reply)).await
    }
}
