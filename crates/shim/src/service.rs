//! containerd's Task API, version 3 and, under its older name, version 2: the same messages. Each method decodes, calls
//! one function of the sandbox, and encodes.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use containerd_shim_protos::shim_async::{Task, create_task};
use containerd_shim_protos::ttrpc::asynchronous::{Service, TtrpcContext};
use containerd_shim_protos::ttrpc::error::get_rpc_status;
use containerd_shim_protos::ttrpc::{Code, Result};
use nacre_sandbox::agent::Reach;
use nacre_sandbox::sandbox::{Force, Sandbox};
use nacre_sandbox::stdio::StdioRequest;

use crate::convert::{self, process_id, timestamp};
use crate::error::{invalid, status};
use crate::metrics;

/// Name of the service in containerd 1.x.
const V2: &str = "containerd.task.v2.Task";

/// The service.
pub(crate) struct TaskService {
    sandbox: Sandbox,
}

/// Both names of the service.
pub(crate) fn services(service: Arc<TaskService>) -> HashMap<String, Service> {
    let older = create_task(service.clone()).into_values().map(|methods| (V2.to_owned(), methods));
    older.chain(create_task(service)).collect()
}

impl TaskService {
    pub(crate) fn new(sandbox: Sandbox) -> Self {
        Self { sandbox }
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Result<StateResponse> {
        let id = process_id(request.id, request.exec_id);
        let known = self.sandbox.status(&id).map_err(status)?;
        Ok(convert::state_response(id, known))
    }

    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        let request = convert::create_request(request).map_err(invalid)?;
        let pid = self.sandbox.create(request).await.map_err(status)?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Result<StartResponse> {
        let pid = self.sandbox.start(process_id(request.id, request.exec_id)).await.map_err(status)?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Result<DeleteResponse> {
        let id = process_id(request.id, request.exec_id);
        let (pid, exit) = self.sandbox.delete(id).await.map_err(status)?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Result<PidsResponse> {
        let pids = self.sandbox.pids(request.id).await.map_err(status)?;
        let processes = pids.into_iter().map(|pid| ProcessInfo { pid, ..ProcessInfo::default() }).collect();
        Ok(PidsResponse { processes, ..PidsResponse::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Result<Empty> {
        self.sandbox.pause(request.id).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Result<Empty> {
        self.sandbox.resume(request.id).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Result<Empty> {
        Err(get_rpc_status(Code::UNIMPLEMENTED, "checkpoints are not supported"))
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Result<Empty> {
        let reach = if request.all { Reach::Everything } else { Reach::Process };
        let id = process_id(request.id, request.exec_id);
        self.sandbox.signal(id, request.signal, reach).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Result<Empty> {
        let process = convert::json(request.spec.as_ref(), "process").map_err(invalid)?;
        let stdio = StdioRequest {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let id = process_id(request.id, request.exec_id);
        self.sandbox.exec(id, process, stdio).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Result<Empty> {
        let id = process_id(request.id, request.exec_id);
        self.sandbox.resize(id, request.width, request.height).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Result<Empty> {
        if request.stdin {
            self.sandbox.close_stdin(process_id(request.id, request.exec_id)).await.map_err(status)?;
        }
        Ok(Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Result<Empty> {
        let resources = convert::json(request.resources.as_ref(), "resources").map_err(invalid)?;
        if let Some(leave) = convert::leave(request.resources.as_ref()).map_err(invalid)? {
            self.sandbox.leave(request.id, leave).await.map_err(status)?;
            return Ok(Empty::default());
        }
        self.sandbox.update(request.id, resources).await.map_err(status)?;
        Ok(Empty::default())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Result<WaitResponse> {
        let exit = self.sandbox.wait(process_id(request.id, request.exec_id)).await.map_err(status)?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..WaitResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Result<StatsResponse> {
        let stats = self.sandbox.stats(request.id).await.map_err(status)?;
        let metrics = metrics::metrics(&stats).map_err(|error| get_rpc_status(Code::INTERNAL, error))?;
        Ok(StatsResponse { stats: Some(metrics).into(), ..StatsResponse::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> Result<ConnectResponse> {
        let task = self.sandbox.status(&process_id(request.id, String::new()));
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task.map_or(0, |task| task.pid),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> Result<Empty> {
        let force = if request.now { Force::Now } else { Force::Empty };
        // A sandbox that still has its container goes on, and that is no error.
        self.sandbox.shutdown(force).await.map_err(status)?;
        Ok(Empty::default())
    }
}
