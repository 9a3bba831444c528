//! Events to containerd, in their order, over its ttrpc socket. Without a socket (`nacre` started this shim) none.
//!
//! containerd may be restarting: an event is tried several times, and then dropped, as its own shims do. Meanwhile the
//! sandbox goes on: the queue between takes what comes, up to a bound.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::{ForwardRequest, Mount};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc::context;
use nacre_sandbox::sandbox::{CreateRequest, ExitInfo, ProcessId, SandboxEvent};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageFull};
use tokio::sync::mpsc;
use tracing::warn;

use crate::convert::timestamp;

/// Environment variable with the path of containerd's ttrpc socket.
const ADDRESS_ENV: &str = "TTRPC_ADDRESS";

/// Events that may wait for containerd.
const QUEUE: usize = 2048;

/// Tries of one event, a second and more apart.
const TRIES: u32 = 5;

/// For containerd to take one event.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where events go.
pub(crate) struct Publisher {
    namespace: String,
    address: Option<String>,
}

impl Publisher {
    /// To the containerd that started this process, if one did.
    pub(crate) fn from_env(namespace: &str) -> Self {
        let address = std::env::var(ADDRESS_ENV).ok().filter(|address| !address.is_empty());
        let unix =
            |address: String| if address.contains("://") { address } else { format!("unix://{address}") };
        Self { namespace: namespace.to_owned(), address: address.map(unix) }
    }

    /// Publishes until the sandbox is over; returns when the last event is out or given up.
    pub(crate) async fn run(self, mut events: mpsc::Receiver<SandboxEvent>) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let sender = tokio::spawn(send_all(self.address, waiting));
        while let Some(event) = events.recv().await {
            if event == SandboxEvent::Finished {
                break;
            }
            if let Some(envelope) = envelope(&self.namespace, event)
                && queue.try_send(envelope).is_err()
            {
                warn!("an event is lost: containerd does not take any");
            }
        }
        drop(queue);
        let _ = sender.await;
    }
}

async fn send_all(address: Option<String>, mut waiting: mpsc::Receiver<Envelope>) {
    let mut client = None;
    while let Some(envelope) = waiting.recv().await {
        let Some(address) = &address else { continue };
        let topic = envelope.topic.clone();
        let request = ForwardRequest { envelope: Some(envelope).into(), ..ForwardRequest::default() };
        for attempt in 1..=TRIES {
            match send(address, &mut client, &request).await {
                Ok(()) => break,
                Err(error) if attempt == TRIES => warn!(topic, %error, "an event is lost"),
                Err(_) => {
                    client = None;
                    tokio::time::sleep(Duration::from_secs(attempt.into())).await;
                }
            }
        }
    }
}

async fn send(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> containerd_shim_protos::ttrpc::Result<()> {
    if client.is_none() {
        *client = Some(EventsClient::new(Client::connect(address).await?));
    }
    if let Some(client) = client {
        client.forward(context::with_duration(TIMEOUT), request).await?;
    }
    Ok(())
}

/// The event as containerd knows it.
fn envelope(namespace: &str, event: SandboxEvent) -> Option<Envelope> {
    let (topic, event) = encode(event)?;
    Some(Envelope {
        timestamp: Some(timestamp(SystemTime::now())).into(),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        event: Some(event).into(),
        ..Envelope::default()
    })
}

fn encode(event: SandboxEvent) -> Option<(&'static str, Any)> {
    let container_id = |id: &ProcessId| id.container.clone();
    match event {
        SandboxEvent::Created { request, pid } => {
            any(topics::TASK_CREATE_EVENT_TOPIC, &created(*request, pid))
        }
        SandboxEvent::Started { process, pid } if process.exec.is_empty() => any(
            topics::TASK_START_EVENT_TOPIC,
            &TaskStart { container_id: process.container, pid, ..TaskStart::default() },
        ),
        SandboxEvent::Started { process, pid } => any(
            topics::TASK_EXEC_STARTED_EVENT_TOPIC,
            &TaskExecStarted {
                container_id: process.container,
                exec_id: process.exec,
                pid,
                ..TaskExecStarted::default()
            },
        ),
        SandboxEvent::ExecAdded { process } => any(
            topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            &TaskExecAdded {
                container_id: process.container,
                exec_id: process.exec,
                ..TaskExecAdded::default()
            },
        ),
        SandboxEvent::Exited { process, pid, exit } => {
            any(topics::TASK_EXIT_EVENT_TOPIC, &exited(process, pid, &exit))
        }
        SandboxEvent::Deleted { process, pid, exit } => any(
            topics::TASK_DELETE_EVENT_TOPIC,
            &TaskDelete {
                container_id: container_id(&process),
                id: process.exec,
                pid,
                exit_status: exit.status,
                exited_at: Some(timestamp(exit.at)).into(),
                ..TaskDelete::default()
            },
        ),
        SandboxEvent::Oom { container } => {
            any(topics::TASK_OOM_EVENT_TOPIC, &TaskOOM { container_id: container, ..TaskOOM::default() })
        }
        SandboxEvent::Paused { container } => any(
            topics::TASK_PAUSED_EVENT_TOPIC,
            &TaskPaused { container_id: container, ..TaskPaused::default() },
        ),
        SandboxEvent::Resumed { container } => any(
            topics::TASK_RESUMED_EVENT_TOPIC,
            &TaskResumed { container_id: container, ..TaskResumed::default() },
        ),
        SandboxEvent::Finished => None,
    }
}

fn created(request: CreateRequest, pid: u32) -> TaskCreate {
    let mount = |mount: nacre_sandbox::plan::Mount| Mount {
        type_: mount.kind,
        source: mount.source,
        target: mount.target,
        options: mount.options,
        ..Mount::default()
    };
    let io = TaskIO {
        stdin: request.stdio.stdin,
        stdout: request.stdio.stdout,
        stderr: request.stdio.stderr,
        terminal: request.stdio.terminal,
        ..TaskIO::default()
    };
    TaskCreate {
        container_id: request.id,
        bundle: request.bundle.to_string_lossy().into_owned(),
        rootfs: request.rootfs.into_iter().map(mount).collect(),
        io: Some(io).into(),
        pid,
        ..TaskCreate::default()
    }
}

/// containerd names the init in an exit by its container's id.
fn exited(process: ProcessId, pid: u32, exit: &ExitInfo) -> TaskExit {
    TaskExit {
        id: if process.exec.is_empty() { process.container.clone() } else { process.exec },
        container_id: process.container,
        pid,
        exit_status: exit.status,
        exited_at: Some(timestamp(exit.at)).into(),
        ..TaskExit::default()
    }
}

fn any<M: MessageFull>(topic: &'static str, message: &M) -> Option<(&'static str, Any)> {
    let type_url = M::descriptor().full_name().to_owned();
    let value = Message::write_to_bytes(message).ok()?;
    Some((topic, Any { type_url, value, ..Any::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_of(exec: &str) -> SandboxEvent {
        let process = ProcessId { container: "web".into(), exec: exec.into() };
        let exit = ExitInfo { status: 137, at: SystemTime::UNIX_EPOCH, oom_killed: true, failure: None };
        SandboxEvent::Exited { process, pid: 42, exit }
    }

    #[test]
    fn exit_of_init_is_named_by_its_container() {
        let envelope = envelope("default", exit_of("")).unwrap();
        assert_eq!(envelope.topic, "/tasks/exit");
        assert_eq!(envelope.event.type_url, "containerd.events.TaskExit");
        let exit = TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
        assert_eq!((exit.container_id.as_str(), exit.id.as_str(), exit.exit_status), ("web", "web", 137));
    }

    #[test]
    fn exit_of_an_exec_is_named_by_its_own_id() {
        let envelope = envelope("default", exit_of("probe")).unwrap();
        assert_eq!(TaskExit::parse_from_bytes(&envelope.event.value).unwrap().id, "probe");
    }
}
