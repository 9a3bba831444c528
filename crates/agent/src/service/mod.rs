//! The RPC service: each method decodes, calls one domain function, and encodes.
//!
//! A method's work runs as a task of its own, so that a caller who gives up (a timeout, a broken connection) never
//! leaves a container half made: the work goes on to its end, and its result is dropped.

mod container;
mod error;
mod machine;
mod process;
mod socket;
mod volume;

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use nacre_protocol::rpc::agent::{
    AddSocketRequest, ConfigureNetworkRequest, ContainerRequest, CreateContainerReply,
    CreateContainerRequest, CreateExecRequest, Empty, EventReply, HelloReply, HelloRequest,
    ListProcessesReply, ProcessRequest, ResizeRequest, SetVolumeRequest, SignalRequest, SlotRequest,
    SocketRequest, StartReply, StatsReply, UpdateRequest, VolumeRequest, WaitReply,
};
use nacre_protocol::rpc::agent_ttrpc;
use ttrpc::r#async::TtrpcContext;

use crate::agent::Agent;
use error::ServiceError;

/// The service on one agent.
#[derive(Debug, Clone)]
pub(crate) struct Service(Arc<Agent>);

impl Service {
    /// A service on `agent`.
    pub(crate) fn new(agent: Arc<Agent>) -> Self {
        Self(agent)
    }

    async fn answer<T, F>(&self, method: &'static str, work: impl FnOnce(Arc<Agent>) -> F) -> ttrpc::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let result = tokio::spawn(work(Arc::clone(&self.0))).await.unwrap_or(Err(ServiceError::CutShort));
        match &result {
            Ok(_) => tracing::debug!(method, "answered"),
            Err(error) => tracing::debug!(method, error = %error.chain(), "refused"),
        }
        result.map_err(ttrpc::Error::from)
    }
}

#[async_trait]
impl agent_ttrpc::Agent for Service {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloReply> {
        self.answer("Hello", |agent| machine::hello(agent, request)).await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerReply> {
        self.answer("CreateContainer", |agent| container::create(agent, request)).await
    }

    async fn create_exec(&self, _: &TtrpcContext, request: CreateExecRequest) -> ttrpc::Result<Empty> {
        self.answer("CreateExec", |agent| process::create_exec(agent, request)).await
    }

    async fn start(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<StartReply> {
        self.answer("Start", |agent| process::start(agent, request)).await
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        self.answer("Signal", |agent| process::signal(agent, request)).await
    }

    async fn wait(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<WaitReply> {
        // Changes nothing, so it ends with its caller.
        process::wait(&self.0, request).await.map_err(ttrpc::Error::from)
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
        self.answer("Resize", |agent| process::resize(agent, request)).await
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        self.answer("CloseStdin", |agent| process::close_stdin(agent, request)).await
    }

    async fn delete(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<WaitReply> {
        self.answer("Delete", |agent| process::delete(agent, request)).await
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ListProcessesReply> {
        self.answer("ListProcesses", |agent| container::list(agent, request)).await
    }

    async fn freeze(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.answer("Freeze", |agent| container::freeze(agent, request)).await
    }

    async fn thaw(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.answer("Thaw", |agent| container::thaw(agent, request)).await
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        self.answer("Update", |agent| container::update(agent, request)).await
    }

    async fn stats(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<StatsReply> {
        self.answer("Stats", |agent| container::stats(agent, request)).await
    }

    async fn set_volume(&self, _: &TtrpcContext, request: SetVolumeRequest) -> ttrpc::Result<Empty> {
        self.answer("SetVolume", |agent| volume::set(agent, request)).await
    }

    async fn remove_volume(&self, _: &TtrpcContext, request: VolumeRequest) -> ttrpc::Result<Empty> {
        self.answer("RemoveVolume", |agent| volume::remove(agent, request)).await
    }

    async fn add_socket(&self, _: &TtrpcContext, request: AddSocketRequest) -> ttrpc::Result<Empty> {
        self.answer("AddSocket", |agent| socket::add(agent, request)).await
    }

    async fn remove_socket(&self, _: &TtrpcContext, request: SocketRequest) -> ttrpc::Result<Empty> {
        self.answer("RemoveSocket", |agent| socket::remove(agent, request)).await
    }

    async fn bind_slot(&self, _: &TtrpcContext, request: SlotRequest) -> ttrpc::Result<Empty> {
        self.answer("BindSlot", |_| machine::bind_slot(request)).await
    }

    async fn unbind_slot(&self, _: &TtrpcContext, request: SlotRequest) -> ttrpc::Result<Empty> {
        self.answer("UnbindSlot", |_| machine::unbind_slot(request)).await
    }

    async fn configure_network(
        &self,
        _: &TtrpcContext,
        request: ConfigureNetworkRequest,
    ) -> ttrpc::Result<Empty> {
        self.answer("ConfigureNetwork", |agent| machine::configure_network(agent, request)).await
    }

    async fn next_event(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<EventReply> {
        // Ends with its caller: the event is for whoever still listens.
        Ok(machine::next_event(&self.0).await)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.answer("Shutdown", machine::shutdown).await
    }
}
