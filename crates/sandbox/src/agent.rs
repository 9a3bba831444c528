//! The agent in the guest, as the host trusts it: not at all (B4, H12).
//!
//! Types convert here, at one of the two edges. A reply is at most 4 MiB (ttrpc's own limit), waits are bounded,
//! text is cut and made harmless, an exit status that cannot be is an error. Ids of replies are only looked up.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nacre_protocol::rpc::agent::{
    self, ConfigureNetworkRequest, ContainerRequest, CreateContainerRequest, CreateExecRequest, DiskRootfs,
    Empty, HelloRequest, LayeredRootfs, ProcessRequest, ResizeRequest, Rootfs, SharedRootfs, SignalRequest,
    SlotRequest, UpdateRequest, rootfs::Source,
};
use nacre_protocol::rpc::agent_ttrpc::AgentClient;
use ttrpc::context::Context;

pub use nacre_protocol::rpc::agent::{Layer, StatsReply, Stdio};

use crate::plan::{BlockDevice, BundleFile};
use crate::text::{MAX_MESSAGE_CHARS, harmless};
use crate::users::IdMaps;

mod given;

/// Bytes of entropy that a guest gets.
const ENTROPY_BYTES: usize = 64;

/// A request that the agent did not carry out.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The connection could not be made ready.
    #[error("cannot use the connection to the agent")]
    Connection(#[source] std::io::Error),
    /// The agent says no, with a status code of gRPC's.
    #[error("{message}")]
    Refused {
        /// What it says, harmless.
        message: String,
        /// Its code.
        code: ttrpc::Code,
    },
    /// No answer.
    #[error("the agent did not answer {method} within {} ms", timeout.as_millis())]
    Unresponsive {
        /// The request.
        method: &'static str,
        /// How long was waited.
        timeout: Duration,
    },
    /// The connection ended.
    #[error("the agent went away during {method}: {detail}")]
    Gone {
        /// The request.
        method: &'static str,
        /// What the connection says, harmless.
        detail: String,
    },
    /// An answer that cannot be.
    #[error("the agent's answer to {method} cannot be: {detail}")]
    Nonsense {
        /// The request.
        method: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

/// What the agent said of its boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// `uname -r` of the guest.
    pub kernel_release: String,
    /// From the start of PID 1 to its answer, on the guest's clock, in microseconds.
    pub agent_us: u64,
}

/// A container that the agent made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Created {
    /// Its init's PID in the guest.
    pub pid: u32,
    /// What it took.
    pub timings: CreateTimings,
}

/// Microseconds that the agent spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CreateTimings {
    /// On the root file system.
    pub rootfs_us: u64,
    /// On all of the creation.
    pub create_us: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit status; 128 + n for signal n.
    pub status: u32,
    /// When.
    pub at: SystemTime,
    /// The memory limit of its container ended it.
    pub oom_killed: bool,
}

/// Where a container's root comes from, in the guest's words.
#[derive(Debug, Clone, PartialEq)]
pub enum GuestRootfs {
    /// Layers on a disk.
    Layered {
        /// Serial of the disk.
        disk_id: String,
        /// Bottom first.
        layers: Vec<Layer>,
        /// Bytes that the writable layer may hold.
        upper_limit_bytes: u64,
    },
    /// An ext4 file system on a disk.
    Disk {
        /// Serial of the disk.
        disk_id: String,
        /// Whether it is mounted so.
        read_only: bool,
    },
    /// An entry of the share.
    Shared {
        /// Its name.
        name: String,
    },
}

/// A container to make, as the guest sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct NewContainer {
    /// OCI config.json.
    pub spec_json: Vec<u8>,
    /// Where its root comes from.
    pub rootfs: GuestRootfs,
    /// Small files.
    pub files: Vec<BundleFile>,
    /// Disks that it uses as they are.
    pub devices: Vec<BlockDevice>,
}

/// A process of a container: its init, or an exec.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProcessName {
    /// The container.
    pub container: String,
    /// The exec; empty: init.
    pub exec: String,
}

/// The client.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    /// The client's own, to hang up by.
    connection: Arc<UnixStream>,
    timeout: Duration,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Agent {
    /// Speaks over one end of the pair whose other end the VMM has.
    ///
    /// # Errors
    /// [`AgentError::Connection`]; or outside of a runtime.
    pub fn new(socket: UnixStream, timeout: Duration) -> Result<Self, AgentError> {
        let connection = Arc::new(socket.try_clone().map_err(AgentError::Connection)?);
        let socket = ttrpc::r#async::transport::Socket::try_from(socket).map_err(AgentError::Connection)?;
        let client = AgentClient::new(ttrpc::r#async::Client::new(socket));
        Ok(Self { client, connection, timeout })
    }

    /// The first call: gives the guest its identity. Its answer means that the guest is ready.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn hello(
        &self,
        hostname: &str,
        shares_tag: &str,
        log_level: &str,
        users: Option<&IdMaps>,
        timeout: Duration,
    ) -> Result<Greeting, AgentError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (uid_mappings, gid_mappings) = users.map(IdMaps::to_agent).unwrap_or_default();
        let request = HelloRequest {
            hostname: hostname.to_owned(),
            realtime_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            entropy: random(ENTROPY_BYTES).map_err(AgentError::Connection)?,
            shares_tag: shares_tag.to_owned(),
            log_level: log_level.to_owned(),
            uid_mappings,
            gid_mappings,
            ..Default::default()
        };
        let call = self.client.hello(Context::default(), &request);
        let reply = within(timeout, "Hello", call).await?;
        Ok(Greeting {
            kernel_release: harmless(&reply.kernel_release, 128),
            agent_us: reply.replied_us.saturating_sub(reply.init_started_us),
        })
    }

    /// Brings the guest's links up, with what the host found on theirs.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn configure_network(&self, request: &ConfigureNetworkRequest) -> Result<(), AgentError> {
        let call = self.client.configure_network(Context::default(), request);
        within(self.timeout, "ConfigureNetwork", call).await?;
        Ok(())
    }

    /// Makes the guest's driver take the device that the VMM has put into a slot.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn bind_slot(&self, slot: u32) -> Result<(), AgentError> {
        let request = SlotRequest { slot, ..Default::default() };
        within(self.timeout, "BindSlot", self.client.bind_slot(Context::default(), &request)).await?;
        Ok(())
    }

    /// Makes the guest's driver let go of the device in a slot.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn unbind_slot(&self, slot: u32) -> Result<(), AgentError> {
        let request = SlotRequest { slot, ..Default::default() };
        within(self.timeout, "UnbindSlot", self.client.unbind_slot(Context::default(), &request)).await?;
        Ok(())
    }

    /// Makes the container, up to its init's exec.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn create_container(
        &self,
        container: &str,
        wanted: NewContainer,
        stdio: Stdio,
    ) -> Result<Created, AgentError> {
        let NewContainer { spec_json, rootfs, files, devices } = wanted;
        let source = match rootfs {
            GuestRootfs::Layered { disk_id, layers, upper_limit_bytes } => {
                Source::Layered(LayeredRootfs { disk_id, layers, upper_limit_bytes, ..Default::default() })
            }
            GuestRootfs::Disk { disk_id, read_only } => {
                let fs_type = "ext4".to_owned();
                Source::Disk(DiskRootfs { disk_id, fs_type, read_only, ..Default::default() })
            }
            GuestRootfs::Shared { name } => Source::Shared(SharedRootfs { name, ..Default::default() }),
        };
        let request = CreateContainerRequest {
            container_id: container.to_owned(),
            spec_json,
            rootfs: Some(Rootfs { source: Some(source), ..Default::default() }).into(),
            stdio: Some(stdio).into(),
            files: files.into_iter().map(guest_file).collect(),
            devices: devices.into_iter().map(guest_device).collect(),
            ..Default::default()
        };
        let call = self.client.create_container(Context::default(), &request);
        let reply = within(self.timeout, "CreateContainer", call).await?;
        let timings = CreateTimings { rootfs_us: reply.rootfs_us, create_us: reply.create_us };
        Ok(Created { pid: reply.pid, timings })
    }

    /// Prepares an exec.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn create_exec(
        &self,
        name: &ProcessName,
        process_json: Vec<u8>,
        stdio: Stdio,
    ) -> Result<(), AgentError> {
        let request = CreateExecRequest {
            container_id: name.container.clone(),
            exec_id: name.exec.clone(),
            process_json,
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        within(self.timeout, "CreateExec", self.client.create_exec(Context::default(), &request)).await?;
        Ok(())
    }

    /// Lets a process execute its program; the microseconds that it took.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn start(&self, name: &ProcessName) -> Result<u64, AgentError> {
        let request = process_request(name);
        let reply = within(self.timeout, "Start", self.client.start(Context::default(), &request)).await?;
        Ok(reply.start_us)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn signal(&self, name: &ProcessName, signal: u32, reach: Reach) -> Result<(), AgentError> {
        let request = SignalRequest {
            container_id: name.container.clone(),
            exec_id: name.exec.clone(),
            signal,
            all: reach == Reach::Everything,
            ..Default::default()
        };
        within(self.timeout, "Signal", self.client.signal(Context::default(), &request)).await?;
        Ok(())
    }

    /// Waits for the end of a process, however long that takes.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn wait(&self, name: &ProcessName) -> Result<Exit, AgentError> {
        let request = process_request(name);
        let call = self.client.wait(Context::default(), &request);
        let reply = call.await.map_err(|error| classify("Wait", error))?;
        if reply.exit_status > 255 {
            let detail = format!("exit status {}", reply.exit_status);
            return Err(AgentError::Nonsense { method: "Wait", detail });
        }
        // The guest's clock says nothing to the host; the host's own is off by the length of a message.
        Ok(Exit { status: reply.exit_status, at: SystemTime::now(), oom_killed: reply.oom_killed })
    }

    /// Tells a terminal its size.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn resize(&self, name: &ProcessName, columns: u32, rows: u32) -> Result<(), AgentError> {
        let request = ResizeRequest {
            container_id: name.container.clone(),
            exec_id: name.exec.clone(),
            columns,
            rows,
            ..Default::default()
        };
        within(self.timeout, "Resize", self.client.resize(Context::default(), &request)).await?;
        Ok(())
    }

    /// Forgets an ended process.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn delete(&self, name: &ProcessName) -> Result<(), AgentError> {
        let request = process_request(name);
        within(self.timeout, "Delete", self.client.delete(Context::default(), &request)).await?;
        Ok(())
    }

    /// Freezes every process of a container.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn freeze(&self, container: &str) -> Result<(), AgentError> {
        let request = container_request(container);
        within(self.timeout, "Freeze", self.client.freeze(Context::default(), &request)).await?;
        Ok(())
    }

    /// Lets a frozen container go on.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn thaw(&self, container: &str) -> Result<(), AgentError> {
        let request = container_request(container);
        within(self.timeout, "Thaw", self.client.thaw(Context::default(), &request)).await?;
        Ok(())
    }

    /// Changes the limits inside the guest; OCI `linux.resources` as JSON.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn update(&self, container: &str, resources_json: Vec<u8>) -> Result<(), AgentError> {
        let request =
            UpdateRequest { container_id: container.to_owned(), resources_json, ..Default::default() };
        within(self.timeout, "Update", self.client.update(Context::default(), &request)).await?;
        Ok(())
    }

    /// Figures of the container's cgroup.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn stats(&self, container: &str) -> Result<StatsReply, AgentError> {
        let request = container_request(container);
        within(self.timeout, "Stats", self.client.stats(Context::default(), &request)).await
    }

    /// Waits for the next event, however long that takes: the container and the kind, harmless.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn next_event(&self) -> Result<(String, String), AgentError> {
        let reply = self.client.next_event(Context::default(), &Empty::new()).await;
        let reply = reply.map_err(|error| classify("NextEvent", error))?;
        Ok((harmless(&reply.container_id, 128), harmless(&reply.kind, 32)))
    }

    /// Ends every process, writes out what is in the guest's memory, restarts the machine, and hangs up.
    ///
    /// # Errors
    /// See [`AgentError`]. That the agent went away is the answer.
    pub async fn shutdown(&self) -> Result<(), AgentError> {
        match within(self.timeout, "Shutdown", self.client.shutdown(Context::default(), &Empty::new())).await
        {
            Ok(_) | Err(AgentError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
        // The agent waits for it: then it knows that its answer has arrived. It fails only where the agent is gone.
        let _ = self.connection.shutdown(Shutdown::Both);
        Ok(())
    }
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The process.
    Process,
    /// Every process of its container.
    Everything,
}

fn guest_device(device: BlockDevice) -> agent::BlockDevice {
    let BlockDevice { disk_id, path, mode, uid, gid, read_only, .. } = device;
    agent::BlockDevice { disk_id, path, mode, uid, gid, read_only, ..Default::default() }
}

fn guest_file(file: BundleFile) -> agent::BundleFile {
    let BundleFile { name, content, mode } = file;
    agent::BundleFile { name, content, mode, ..Default::default() }
}

fn process_request(name: &ProcessName) -> ProcessRequest {
    ProcessRequest { container_id: name.container.clone(), exec_id: name.exec.clone(), ..Default::default() }
}

fn container_request(container: &str) -> ContainerRequest {
    ContainerRequest { container_id: container.to_owned(), ..Default::default() }
}

async fn within<T>(
    timeout: Duration,
    method: &'static str,
    call: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(result) => result.map_err(|error| classify(method, error)),
        Err(_) => Err(AgentError::Unresponsive { method, timeout }),
    }
}

fn classify(method: &'static str, error: ttrpc::Error) -> AgentError {
    match error {
        ttrpc::Error::RpcStatus(status) => AgentError::Refused {
            message: harmless(&status.message, MAX_MESSAGE_CHARS),
            code: status.code.enum_value().unwrap_or(ttrpc::Code::UNKNOWN),
        },
        ttrpc::Error::Others(detail) => AgentError::Nonsense { method, detail: harmless(&detail, 256) },
        error => AgentError::Gone { method, detail: harmless(&error.to_string(), 256) },
    }
}

/// Bytes from the host's random number generator.
pub(crate) fn random(count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures_util::stream::{self, StreamExt};
    use nacre_protocol::rpc::agent_ttrpc::{Agent as Service, create_agent};
    use rustix::event::{PollFd, PollFlags, poll};
    use ttrpc::asynchronous::transport::{Listener, Socket};
    use ttrpc::asynchronous::{Server, TtrpcContext};

    use super::*;

    struct Guest;

    #[async_trait]
    impl Service for Guest {
        async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
            Ok(Empty::new())
        }
    }

    #[tokio::test]
    async fn guest_that_has_agreed_to_end_is_hung_up_on() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let watched = theirs.try_clone().unwrap();
        let socket = Socket::try_from(theirs).unwrap();
        let incoming = stream::iter([Ok(socket)]).chain(stream::pending());
        let service = create_agent(Arc::new(Guest));
        let mut server = Server::new().add_listener(Listener::new(incoming)).register_service(service);
        server.start().await.unwrap();
        let agent = Agent::new(ours, Duration::from_secs(60)).unwrap();
        // Somebody else waits for events, as ever.
        let events = tokio::spawn({
            let agent = agent.clone();
            async move { agent.next_event().await }
        });
        agent.shutdown().await.unwrap();
        let mut fds = [PollFd::new(&watched, PollFlags::RDHUP)];
        poll(&mut fds, None).unwrap();
        assert!(fds[0].revents().contains(PollFlags::RDHUP));
        assert!(events.await.unwrap().is_err());
    }
}
