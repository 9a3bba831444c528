//! RPC methods on processes.

use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use nacre_protocol::id::{ContainerId, IdError};
use nacre_protocol::rpc::agent::{
    CreateExecRequest, Empty, ProcessRequest, ResizeRequest, SignalRequest, StartReply, WaitReply,
};
use rustix::process::Signal;
use tokio::task::spawn_blocking;

use super::container::{MAX_DOCUMENT, with_cgroup};
use super::error::ServiceError;
use crate::agent::Agent;
use crate::process::{self, Ended, Process, ProcessError};
use crate::sys;

pub(super) async fn create_exec(
    agent: Arc<Agent>,
    request: CreateExecRequest,
) -> Result<Empty, ServiceError> {
    let (id, exec) = (request.container_id.parse()?, request.exec_id.parse()?);
    if request.process_json.len() > MAX_DOCUMENT {
        return Err(ServiceError::Invalid("the process configuration is too long"));
    }
    let stdio = request.stdio.into_option().unwrap_or_default();
    process::create_exec(&agent, &id, &exec, request.process_json, &stdio).await?;
    Ok(Empty::new())
}

pub(super) async fn start(agent: Arc<Agent>, request: ProcessRequest) -> Result<StartReply, ServiceError> {
    let begin = Instant::now();
    let process = find(&agent, &request.container_id, &request.exec_id)?;
    let starter = process.take_starter()?;
    spawn_blocking(move || starter.start()).await.map_err(|_| ServiceError::CutShort)??;
    let start_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(StartReply { pid: process.child().pid(), start_us, ..Default::default() })
}

pub(super) async fn signal(agent: Arc<Agent>, request: SignalRequest) -> Result<Empty, ServiceError> {
    let signal = sys::signal(request.signal).ok_or(ProcessError::BadSignal(request.signal))?;
    if !request.all {
        find(&agent, &request.container_id, &request.exec_id)?.signal(signal)?;
    } else if signal == Signal::KILL {
        // By the cgroup, which no fork outruns.
        with_cgroup(&agent, &request.container_id, |cgroup| cgroup.kill_all()).await?;
    } else {
        with_cgroup(&agent, &request.container_id, move |cgroup| cgroup.signal_all(signal)).await?;
    }
    Ok(Empty::new())
}

pub(super) async fn wait(agent: &Agent, request: ProcessRequest) -> Result<WaitReply, ServiceError> {
    let process = find(agent, &request.container_id, &request.exec_id)?;
    Ok(wait_reply(process.wait().await))
}

pub(super) async fn resize(agent: Arc<Agent>, request: ResizeRequest) -> Result<Empty, ServiceError> {
    let process = find(&agent, &request.container_id, &request.exec_id)?;
    if !process.streams().resize(request.columns, request.rows)? {
        return Err(ProcessError::NoTerminal.into());
    }
    Ok(Empty::new())
}

pub(super) async fn close_stdin(agent: Arc<Agent>, request: ProcessRequest) -> Result<Empty, ServiceError> {
    find(&agent, &request.container_id, &request.exec_id)?.streams().close_stdin();
    Ok(Empty::new())
}

pub(super) async fn delete(agent: Arc<Agent>, request: ProcessRequest) -> Result<WaitReply, ServiceError> {
    let id = request.container_id.parse()?;
    let ended = match exec_id(&request.exec_id)? {
        Some(exec) => process::delete_exec(&agent, &id, &exec).await?,
        None => process::delete_container(&agent, &id).await?,
    };
    Ok(wait_reply(ended))
}

fn find(agent: &Agent, id: &str, exec: &str) -> Result<Arc<Process>, ServiceError> {
    Ok(agent.table.process(&id.parse()?, exec_id(exec)?.as_ref())?)
}

/// None for the container's init.
fn exec_id(text: &str) -> Result<Option<ContainerId>, IdError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

fn wait_reply(ended: Ended) -> WaitReply {
    let since_epoch = ended.exit.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    WaitReply {
        exit_status: ended.exit.status,
        exited_at_ns: i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX),
        oom_killed: ended.oom_killed,
        ..Default::default()
    }
}
