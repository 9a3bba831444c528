//! Events to containerd, in their order, over its ttrpc socket. Without a socket (`nacre` started this shim) none.
//!
//! containerd may be away, for a restart or longer: as long as nobody is at its socket and the sandbox lives, events wait. One that
//! containerd itself does not take is tried several times, and then dropped, as its own shims do. Meanwhile the sandbox goes on: the
//! queue between takes what comes, up to a bound.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::api::{ForwardRequest, Mount};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc::{self, context};
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

/// The pause after the first try; each further one is longer by as much, up to [`TRIES`] times that.
const PAUSE: Duration = Duration::from_secs(1);

/// For events that wait when the sandbox is over.
const GRACE: Duration = Duration::from_secs(15);

/// For containerd to take one event.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where events go.
pub(crate) struct Publisher {
    namespace: String,
    address: Option<String>,
    pause: Duration,
}

impl Publisher {
    /// To the containerd that started this process, if one did.
    pub(crate) fn from_env(namespace: &str) -> Self {
        let address = std::env::var(ADDRESS_ENV).ok().filter(|address| !address.is_empty());
        let unix =
            |address: String| if address.contains("://") { address } else { format!("unix://{address}") };
        Self { namespace: namespace.to_owned(), address: address.map(unix), pause: PAUSE }
    }

    /// Publishes until the sandbox is over; returns when the last event is out or given up.
    pub(crate) async fn run(self, mut events: mpsc::Receiver<SandboxEvent>) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let over = Arc::new(OnceLock::new());
        let sender = tokio::spawn(send_all(self.address, waiting, over.clone(), self.pause));
        while let Some(event) = events.recv().await {
            if event == SandboxEvent::Finished {
                break;
            }
            // A guest makes as many of these as it likes; they must not take the place of an exit.
            if matches!(event, SandboxEvent::Oom { .. }) && queue.capacity() < QUEUE / 2 {
                continue;
            }
            if let Some(envelope) = envelope(&self.namespace, event)
                && queue.try_send(envelope).is_err()
            {
                warn!("an event is lost: containerd does not take any");
            }
        }
        let _ = over.set(Instant::now());
        drop(queue);
        let _ = sender.await;
    }
}

/// What keeps an event here.
enum Failure {
    /// Nobody is at the socket.
    Away(ttrpc::Error),
    /// containerd does not take it.
    Refused(ttrpc::Error),
}

async fn send_all(
    address: Option<String>,
    mut waiting: mpsc::Receiver<Envelope>,
    over: Arc<OnceLock<Instant>>,
    step: Duration,
) {
    let mut client = None;
    while let Some(envelope) = waiting.recv().await {
        let Some(address) = &address else { continue };
        let topic = envelope.topic.clone();
        let request = ForwardRequest { envelope: Some(envelope).into(), ..ForwardRequest::default() };
        let (mut tries, mut pause) = (0, Duration::ZERO);
        loop {
            let error = match send(address, &mut client, &request).await {
                Ok(()) => break,
                // A shim that has nothing else to do does not wait for a containerd that may never come.
                Err(Failure::Away(error)) if over.get().is_none() => {
                    if pause.is_zero() {
                        warn!(%error, "containerd is away: events wait");
                    }
                    None
                }
                Err(Failure::Away(error) | Failure::Refused(error)) => Some(error),
            };
            client = None;
            if let Some(error) = error {
                tries += 1;
                if tries == TRIES || over.get().is_some_and(|since| since.elapsed() > GRACE) {
                    warn!(topic, %error, "an event is lost");
                    break;
                }
            }
            pause = (pause + step).min(step * TRIES);
            tokio::time::sleep(pause).await;
        }
    }
}

async fn send(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> Result<(), Failure> {
    if client.is_none() {
        *client = Some(EventsClient::new(Client::connect(address).await.map_err(Failure::Away)?));
    }
    if let Some(client) = client {
        client.forward(context::with_duration(TIMEOUT), request).await.map_err(Failure::Refused)?;
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
    use async_trait::async_trait;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use containerd_shim_protos::ttrpc::asynchronous::{Server, TtrpcContext};

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

    /// containerd's end of the socket.
    struct Containerd(mpsc::UnboundedSender<String>);

    #[async_trait]
    impl Events for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            self.0.send(request.envelope.topic.clone()).unwrap();
            Ok(Empty::new())
        }
    }

    fn listen(address: &str) -> (Server, mpsc::UnboundedReceiver<String>) {
        let (sender, topics) = mpsc::unbounded_channel();
        let mut server = Server::new().bind(address).unwrap();
        server = server.register_service(create_events(Arc::new(Containerd(sender))));
        (server, topics)
    }

    #[tokio::test]
    async fn events_wait_for_a_containerd_that_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("unix://{}", dir.path().join("ttrpc").display());
        let (sender, events) = mpsc::channel(8);
        let publisher = Publisher {
            namespace: "default".into(),
            address: Some(address.clone()),
            pause: Duration::from_millis(1),
        };
        let publisher = tokio::spawn(publisher.run(events));
        sender.send(SandboxEvent::Oom { container: "web".into() }).await.unwrap();
        sender.send(exit_of("")).await.unwrap();
        // Many times as long as an event is tried that is refused.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (mut server, mut topics) = listen(&address);
        server.start().await.unwrap();
        assert_eq!(topics.recv().await.unwrap(), "/tasks/oom");
        assert_eq!(topics.recv().await.unwrap(), "/tasks/exit");
        sender.send(SandboxEvent::Finished).await.unwrap();
        publisher.await.unwrap();
        server.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn sandbox_that_is_over_does_not_wait_for_a_containerd_that_never_comes() {
        let dir = tempfile::tempdir().unwrap();
        let address = Some(format!("unix://{}", dir.path().join("ttrpc").display()));
        let (sender, events) = mpsc::channel(8);
        let publisher = Publisher { namespace: "default".into(), address, pause: Duration::from_millis(1) };
        sender.send(exit_of("")).await.unwrap();
        sender.send(SandboxEvent::Finished).await.unwrap();
        tokio::time::timeout(Duration::from_secs(60), publisher.run(events)).await.expect("it waits");
    }
}
