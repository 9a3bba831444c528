//! containerd's Sandbox API: the VM of a pod, without a pause container. Each method decodes, calls one function of the
//! sandbox, and encodes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::{Sandbox as SandboxApi, create_sandbox};
use containerd_shim_protos::ttrpc::asynchronous::{Service, TtrpcContext};
use containerd_shim_protos::ttrpc::error::get_rpc_status;
use containerd_shim_protos::ttrpc::{Code, Result};
use nacre_protocol::id::ContainerId;
use nacre_sandbox::plan::pod::PodRequest;
use nacre_sandbox::sandbox::{Force, PodStatus, Sandbox};

use crate::convert::{pod_request, timestamp};
use crate::error::{invalid, status};
use crate::metrics;

/// What the CRI calls a pod's state.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The service.
pub(crate) struct SandboxService {
    id: ContainerId,
    sandbox: Sandbox,
    /// What was asked for, until it is started.
    created: Mutex<Option<PodRequest>>,
}

/// The service by its name.
pub(crate) fn services(service: Arc<SandboxService>) -> HashMap<String, Service> {
    create_sandbox(service)
}

impl SandboxService {
    pub(crate) fn new(id: ContainerId, sandbox: Sandbox) -> Self {
        Self { id, sandbox, created: Mutex::new(None) }
    }

    /// A shim has one sandbox.
    fn check(&self, id: &str) -> Result<()> {
        if id == self.id.as_str() {
            return Ok(());
        }
        Err(get_rpc_status(Code::NOT_FOUND, format!("this shim is of the sandbox {}", self.id)))
    }

    fn pod(&self, id: &str) -> Result<PodStatus> {
        self.check(id)?;
        let pod = self.sandbox.pod_status();
        pod.ok_or_else(|| get_rpc_status(Code::NOT_FOUND, "the sandbox was not started"))
    }
}

#[async_trait]
impl SandboxApi for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> Result<CreateSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let pod = pod_request(request).map_err(invalid)?;
        let mut created = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        if created.is_some() || self.sandbox.pod_status().is_some() {
            return Err(get_rpc_status(Code::ALREADY_EXISTS, "the sandbox exists"));
        }
        *created = Some(pod);
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> Result<StartSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let created = self.created.lock().unwrap_or_else(PoisonError::into_inner).take();
        let created = created
            .ok_or_else(|| get_rpc_status(Code::FAILED_PRECONDITION, "there is no sandbox to start"))?;
        let pid = self.sandbox.start_pod(created).await.map_err(status)?;
        let created_at = self.sandbox.pod_status().map_or_else(SystemTime::now, |pod| pod.created_at);
        Ok(StartSandboxResponse {
            pid,
            created_at: Some(timestamp(created_at)).into(),
            ..StartSandboxResponse::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> Result<PlatformResponse> {
        self.check(&request.sandbox_id)?;
        let mut response = PlatformResponse::default();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".to_owned();
        platform.architecture = "amd64".to_owned();
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> Result<StopSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.sandbox.stop_pod().await.map_err(status)?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> Result<WaitSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let exit = self.sandbox.wait_pod().await.map_err(status)?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> Result<SandboxStatusResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        let mut info = HashMap::new();
        if let (true, Some(failure)) =
            (request.verbose, pod.exit.as_ref().and_then(|exit| exit.failure.clone()))
        {
            info.insert("failure".to_owned(), failure);
        }
        Ok(SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: pod.pid,
            state: if pod.exit.is_none() { READY } else { NOT_READY }.to_owned(),
            info,
            created_at: Some(timestamp(pod.created_at)).into(),
            exited_at: pod.exit.map(|exit| timestamp(exit.at)).into(),
            ..SandboxStatusResponse::default()
        })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> Result<PingResponse> {
        self.check(&request.sandbox_id)?;
        Ok(PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> Result<ShutdownSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.sandbox.shutdown(Force::Now).await.map_err(status)?;
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> Result<SandboxMetricsResponse> {
        self.pod(&request.sandbox_id)?;
        let stats = self.sandbox.pod_stats().await.map_err(status)?;
        let data = metrics::metrics(&stats).map_err(|error| get_rpc_status(Code::INTERNAL, error))?;
        let mut response = SandboxMetricsResponse::default();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.id = request.sandbox_id;
        metrics.timestamp = Some(timestamp(SystemTime::now())).into();
        metrics.data = Some(data).into();
        Ok(response)
    }
}
