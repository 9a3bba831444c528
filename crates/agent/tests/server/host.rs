//! Plays the host: a client of the agent's server over socket pairs, with Unix sockets for streams.

use std::collections::HashSet;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nacre_agent::agent::Agent;
use nacre_agent::container::Guest;
use nacre_agent::server::serve;
use nacre_agent::stream::{Unclaimed, accept_unix};
use nacre_protocol::rpc::agent::{
    CreateContainerReply, CreateContainerRequest, ProcessRequest, Rootfs, SharedRootfs, Stdio, WaitReply,
    rootfs,
};
use nacre_protocol::rpc::agent_ttrpc::AgentClient;
use nacre_protocol::stream::Token;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::{Context, with_duration};

/// How long any answer may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server on a thread of its own, and a client of it.
pub struct Host {
    pub agent: AgentClient,
    door: PathBuf,
    server: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

/// The host's ends of a process's streams.
pub struct Streams {
    pub stdin: UnixStream,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
}

impl Host {
    /// Serves `guest`. The server's threads share the mounts of the calling thread.
    pub fn of(guest: Guest) -> Self {
        Self::with_patience(guest, Duration::from_secs(10))
    }

    /// As [`of`](Self::of); streams that do not come within `patience` fail their process.
    pub fn with_patience(guest: Guest, patience: Duration) -> Self {
        let (control, server) = control(guest, patience);
        control.set_nonblocking(true).unwrap();
        let client = Client::new(Socket::new(UnixStream::from_std(control).unwrap()));
        let (door, dir, server) = server;
        Self { agent: AgentClient::new(client), door, server: Some(server), _dir: dir }
    }

    /// Waits until the server has returned.
    pub fn join(&mut self) {
        let server = self.server.take().unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        while !server.is_finished() {
            assert!(std::time::Instant::now() < deadline, "the server does not return");
            thread::sleep(Duration::from_millis(5));
        }
        server.join().unwrap();
    }

    pub async fn connect(&self, token: Token) -> UnixStream {
        let mut stream = UnixStream::connect(&self.door).await.unwrap();
        stream.write_all(&token.hello()).await.unwrap();
        stream
    }

    /// Three streams that have come before they are asked for.
    pub async fn streams(&self) -> (Stdio, Streams) {
        let tokens = [fresh_token(), fresh_token(), fresh_token()];
        let streams = Streams {
            stdin: self.connect(tokens[0]).await,
            stdout: self.connect(tokens[1]).await,
            stderr: self.connect(tokens[2]).await,
        };
        let [stdin, stdout, stderr] = tokens.map(|token| token.0.to_vec());
        (Stdio { stdin, stdout, stderr, ..Default::default() }, streams)
    }

    pub async fn create(&self, id: &str, spec: &Value, stdio: Stdio) -> ttrpc::Result<CreateContainerReply> {
        self.agent.create_container(context(), &create_request(id, spec, stdio)).await
    }

    /// Creates and starts a container without streams.
    pub async fn run(&self, id: &str, spec: &Value) {
        self.create(id, spec, Stdio::default()).await.unwrap();
        self.agent.start(context(), &process(id, "")).await.unwrap();
    }

    pub async fn wait(&self, id: &str, exec: &str) -> WaitReply {
        self.agent.wait(context(), &process(id, exec)).await.unwrap()
    }

    pub async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<WaitReply> {
        self.agent.delete(context(), &process(id, exec)).await
    }
}

/// The host's end of a new control connection, with the server behind it.
pub fn control(
    guest: Guest,
    patience: Duration,
) -> (StdStream, (PathBuf, tempfile::TempDir, JoinHandle<()>)) {
    let (control, served) = StdStream::pair().unwrap();
    served.set_nonblocking(true).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let door = dir.path().join("door");
    let (path, (listening, listens)) = (door.clone(), mpsc::channel());
    let server = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let unclaimed = Arc::new(Unclaimed::with_patience(patience));
            let listener = UnixListener::bind(path).unwrap();
            listening.send(()).unwrap();
            tokio::spawn(accept_unix(listener, Arc::clone(&unclaimed)));
            let agent = Arc::new(Agent::new(guest, unclaimed, 0));
            serve(UnixStream::from_std(served).unwrap(), agent).await.unwrap();
        });
        runtime.shutdown_background();
    });
    listens.recv().unwrap();
    (control, (door, dir, server))
}

pub fn context() -> Context {
    with_duration(PATIENCE)
}

/// A container's id in this run of the tests, so that what a failed run left is in nobody's way.
pub fn unique(id: &str) -> String {
    format!("{id}-{}", std::process::id())
}

pub fn process(id: &str, exec: &str) -> ProcessRequest {
    ProcessRequest { container_id: unique(id), exec_id: exec.to_owned(), ..Default::default() }
}

pub fn create_request(id: &str, spec: &Value, stdio: Stdio) -> CreateContainerRequest {
    let shared = SharedRootfs { name: "rootfs".to_owned(), ..Default::default() };
    CreateContainerRequest {
        container_id: unique(id),
        spec_json: serde_json::to_vec(spec).unwrap(),
        rootfs: Some(Rootfs { source: Some(rootfs::Source::Shared(shared)), ..Default::default() }).into(),
        stdio: Some(stdio).into(),
        ..Default::default()
    }
}

/// The status code of a refusal.
pub fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("not a status: {other:?}"),
    }
}

pub async fn text(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the stream ends").unwrap();
    String::from_utf8(bytes).unwrap()
}

pub fn fresh_token() -> Token {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    Token([NEXT.fetch_add(1, Ordering::Relaxed); 16])
}

/// What is left of containers in a guest: directories of state and cgroups of this test's names.
pub fn left_behind(guest: &Guest, id: &str) -> HashSet<PathBuf> {
    let id = unique(id);
    let found = |dir: &std::path::Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(&id)).collect()
    };
    [found(&guest.state_dir), found(&guest.cgroup_root), found(&guest.cgroup_root.join("nacre"))]
        .concat()
        .into_iter()
        .collect()
}
