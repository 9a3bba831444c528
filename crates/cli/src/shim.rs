//! Client of the shim: starts it, and speaks containerd's Task API to it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use containerd_shim_protos::api::{
    CloseIORequest, CreateTaskRequest, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    ResizePtyRequest, ShutdownRequest, StartRequest, StateRequest, StateResponse, UpdateTaskRequest,
    WaitRequest,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::ttrpc::context::{self, Context};
use containerd_shim_protos::ttrpc::{Code, Error as RpcError};
use nacre_protocol::task::{LEAVE_TYPE_URL, Leave};

/// containerd namespace of the containers that this command line makes.
const NAMESPACE: &str = "nacre";

/// Name of the shim's binary.
const BINARY: &str = "containerd-shim-nacre-v2";

/// File in the bundle with the address of the shim's socket, as containerd keeps it.
const ADDRESS_FILE: &str = "address";

/// For calls that do not wait for a process; generous, since emulated machines are slow.
const CALL_TIMEOUT: Duration = Duration::from_secs(300);

/// A shim that cannot be spoken to, or its answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    #[error("cannot find {BINARY}: it must stand beside nacre or on PATH")]
    NotFound,
    #[error("cannot start {path}")]
    Spawn { path: PathBuf, source: std::io::Error },
    #[error("the shim did not start: {0}")]
    Start(String),
    #[error("the shim's answer has no address: {0:?}")]
    Address(String),
    #[error("cannot write {path}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("the container's shim does not answer; remove the container with nacre rm -f")]
    Gone(#[source] RpcError),
    #[error("{0}")]
    Refused(String, Code),
    #[error("the connection to the shim broke; the shim has died")]
    Broken(#[source] RpcError),
}

impl ShimError {
    /// The shim, or the process asked for, is not there any more; one that is shutting down answers "unavailable".
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::Gone(_) | Self::Broken(_) => true,
            Self::Refused(_, code) => matches!(code, Code::NOT_FOUND | Code::UNAVAILABLE),
            _ => false,
        }
    }
}

impl From<RpcError> for ShimError {
    fn from(error: RpcError) -> Self {
        match error {
            RpcError::RpcStatus(status) => Self::Refused(status.message.clone(), status.code()),
            other => Self::Broken(other),
        }
    }
}

/// Starts a shim for the bundle; its address is kept there.
pub(crate) fn start(bundle: &Path, id: &str) -> Result<String, ShimError> {
    let path = binary()?;
    let output = Command::new(&path)
        .args(["-namespace", NAMESPACE, "-id", id, "-address", "", "start"])
        .current_dir(bundle)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|source| ShimError::Spawn { path, source })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(ShimError::Start(
            text.trim().trim_start_matches(BINARY).trim_start_matches(": ").to_owned(),
        ));
    }
    let address = parse_address(&String::from_utf8_lossy(&output.stdout))?;
    let file = bundle.join(ADDRESS_FILE);
    std::fs::write(&file, &address).map_err(|source| ShimError::File { path: file, source })?;
    Ok(address)
}

/// The shim beside this program, else the one on PATH.
fn binary() -> Result<PathBuf, ShimError> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(BINARY)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = beside.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join(BINARY)));
    candidates.find(|path| path.is_file()).ok_or(ShimError::NotFound)
}

/// Takes the plain address of older shims' answers and the JSON of newer ones.
fn parse_address(answer: &str) -> Result<String, ShimError> {
    let answer = answer.trim();
    let address = if answer.starts_with('{') {
        let value: serde_json::Value = serde_json::from_str(answer).unwrap_or_default();
        value["address"].as_str().unwrap_or_default().to_owned()
    } else {
        answer.to_owned()
    };
    if address.starts_with("unix://") { Ok(address) } else { Err(ShimError::Address(answer.to_owned())) }
}

/// Runs `delete` of the shim's binary: clears up after a shim that died.
pub(crate) fn clean_up(bundle: &Path, id: &str) -> Result<(), ShimError> {
    let path = binary()?;
    let output = Command::new(&path)
        .args(["-namespace", NAMESPACE, "-id", id, "-address", "", "-bundle"])
        .arg(bundle)
        .arg("delete")
        .current_dir(bundle)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ShimError::Spawn { path, source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(ShimError::Start(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// A connection to one shim.
#[derive(Clone)]
pub(crate) struct Shim {
    client: TaskClient,
    id: String,
}

impl Shim {
    /// Connects to the shim of a bundle.
    pub(crate) async fn connect(bundle: &Path, id: &str) -> Result<Self, ShimError> {
        let address = std::fs::read_to_string(bundle.join(ADDRESS_FILE))
            .map_err(|error| ShimError::Gone(RpcError::Others(error.to_string())))?;
        Self::connect_to(&address, id).await
    }

    /// Connects to the shim at an address.
    pub(crate) async fn connect_to(address: &str, id: &str) -> Result<Self, ShimError> {
        let client = Client::connect(address.trim()).await.map_err(ShimError::Gone)?;
        Ok(Self { client: TaskClient::new(client), id: id.to_owned() })
    }

    pub(crate) async fn create(&self, mut request: CreateTaskRequest) -> Result<u32, ShimError> {
        request.id = self.id.clone();
        Ok(self.client.create(soon(), &request).await?.pid)
    }

    pub(crate) async fn start(&self, exec_id: &str) -> Result<u32, ShimError> {
        let request = StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        Ok(self.client.start(soon(), &request).await?.pid)
    }

    pub(crate) async fn exec(&self, mut request: ExecProcessRequest) -> Result<(), ShimError> {
        request.id = self.id.clone();
        self.client.exec(soon(), &request).await?;
        Ok(())
    }

    /// Exit status of the process, when it has ended.
    pub(crate) async fn wait(&self, exec_id: &str) -> Result<u32, ShimError> {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        Ok(self.client.wait(context::with_timeout(0), &request).await?.exit_status)
    }

    pub(crate) async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), ShimError> {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.client.kill(soon(), &request).await?;
        Ok(())
    }

    pub(crate) async fn resize(&self, exec_id: &str, width: u32, height: u32) -> Result<(), ShimError> {
        let request = ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            width,
            height,
            ..Default::default()
        };
        self.client.resize_pty(soon(), &request).await?;
        Ok(())
    }

    /// Tells the process that its stdin has ended.
    pub(crate) async fn close_stdin(&self, exec_id: &str) -> Result<(), ShimError> {
        let request = CloseIORequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.client.close_io(soon(), &request).await?;
        Ok(())
    }

    /// Leaves a process to itself.
    pub(crate) async fn leave(&self, leave: &Leave) -> Result<(), ShimError> {
        // Strings and a word: they always have a JSON form.
        let value = serde_json::to_vec(leave).map_err(|error| RpcError::Others(error.to_string()))?;
        let resources = any(LEAVE_TYPE_URL, value);
        let request = UpdateTaskRequest { id: self.id.clone(), resources, ..Default::default() };
        self.client.update(soon(), &request).await?;
        Ok(())
    }

    pub(crate) async fn state(&self) -> Result<StateResponse, ShimError> {
        let request = StateRequest { id: self.id.clone(), ..Default::default() };
        Ok(self.client.state(soon(), &request).await?)
    }

    pub(crate) async fn delete(&self, exec_id: &str) -> Result<DeleteResponse, ShimError> {
        let request =
            DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
        Ok(self.client.delete(soon(), &request).await?)
    }

    /// Ends the shim, with `now` a container that it still has too, which then goes on by itself; a shim that is
    /// gone before it could answer has ended too.
    pub(crate) async fn shutdown(&self, now: bool) {
        let request = ShutdownRequest { id: self.id.clone(), now, ..Default::default() };
        // The shim may close the connection before its answer is out.
        let _ = self.client.shutdown(soon(), &request).await;
    }
}

fn soon() -> Context {
    context::with_duration(CALL_TIMEOUT)
}

/// A JSON value as `google.protobuf.Any`.
pub(crate) fn any(
    type_url: &str,
    value: Vec<u8>,
) -> containerd_shim_protos::protobuf::MessageField<
    containerd_shim_protos::protobuf::well_known_types::any::Any,
> {
    let mut any = containerd_shim_protos::protobuf::well_known_types::any::Any::new();
    any.type_url = type_url.to_owned();
    any.value = value;
    debug_assert!(any.is_initialized(), "Any has no required fields");
    Some(any).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shim_that_is_shutting_down_has_nothing_left_to_stop() {
        let refused = |code| ShimError::Refused("x".into(), code).is_gone();
        assert!(refused(Code::UNAVAILABLE) && refused(Code::NOT_FOUND));
        assert!(!refused(Code::FAILED_PRECONDITION));
    }

    #[test]
    fn both_forms_of_address_are_taken() {
        assert_eq!(parse_address("unix:///run/x.sock\n").unwrap(), "unix:///run/x.sock");
        let json = r#"{"version":3,"address":"unix:///run/x.sock","protocol":"ttrpc"}"#;
        assert_eq!(parse_address(json).unwrap(), "unix:///run/x.sock");
        assert!(parse_address("").is_err() && parse_address("{}").is_err());
    }
}
