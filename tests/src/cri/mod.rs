//! A client of the Container Runtime Interface, which calls a runtime as a kubelet does: gRPC over a Unix socket, one call
//! at a time.
//!
//! ```text
//! mod.rs     the connection: unary calls, and streams of answers
//! wish.rs    a container as a kubelet describes it
//! pod.rs     a pod, and what is asked of it and of its containers
//! list.rs    what a runtime has, by filters
//! stream.rs  exec, attach and port-forward: SPDY to the runtime's streaming server
//! ```

mod list;
mod pod;
mod stream;
mod wish;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request};
use protobuf::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

pub use list::state;
pub use pod::{Pod, named, pod_config, wait_for};
pub use stream::{Channel, Streams};
pub use wish::Wish;

use nacre_protocol::cri::{Empty, StatusRequest, StatusResponse};

/// For a call on an emulated machine under load.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// SANDBOX_READY.
pub const READY: i32 = 0;

/// CONTAINER_CREATED.
pub const CREATED: i32 = 0;

/// CONTAINER_RUNNING.
pub const RUNNING: i32 = 1;

/// CONTAINER_EXITED.
pub const EXITED: i32 = 2;

/// NamespaceMode.
pub(crate) const OF_POD: i32 = 0;
pub(crate) const OF_CONTAINER: i32 = 1;

/// gRPC's status NOT_FOUND.
pub const NOT_FOUND: i32 = 5;

/// gRPC's status UNIMPLEMENTED.
pub const UNIMPLEMENTED: i32 = 12;

/// gRPC's status DEADLINE_EXCEEDED.
pub const DEADLINE_EXCEEDED: i32 = 4;

/// Longest reply.
const MAX_REPLY: usize = 16 << 20;

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// gRPC's status; -1 where the call did not get that far.
    pub status: i32,
    /// Why.
    pub message: String,
}

/// A connection to a runtime.
pub struct Cri {
    runtime: Runtime,
    connection: SendRequest<Bytes>,
    socket: PathBuf,
}

impl Cri {
    /// Connects to the socket.
    ///
    /// # Errors
    /// [`Refusal`] where nobody listens there.
    ///
    /// # Panics
    /// Where no runtime can be made.
    pub fn connect(socket: &Path) -> Result<Self, Refusal> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let connection = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.map_err(|error| refused(&error))?;
            let (client, connection) =
                h2::client::handshake(stream).await.map_err(|error| refused(&error))?;
            // Ends with its client.
            tokio::spawn(connection);
            Ok(client)
        })?;
        Ok(Self { runtime, connection, socket: socket.to_owned() })
    }

    /// Another connection to the same runtime, for a thread or for a call of its own.
    ///
    /// # Panics
    /// Where nobody listens there any more.
    pub fn again(&self) -> Self {
        Self::connect(&self.socket).expect("the runtime listens")
    }

    /// Calls a method of the runtime service.
    ///
    /// # Errors
    /// [`Refusal`] with what the runtime says.
    pub fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Result<A, Refusal> {
        let bytes = request.write_to_bytes().map_err(|error| refused(&error))?;
        let exchange = exchange(self.connection.clone(), path(method), bytes);
        let reply = self.runtime.block_on(async { tokio::time::timeout(LIMIT, exchange).await });
        let reply = reply.map_err(|_| {
            let message = format!("{method} was not answered within {} s", LIMIT.as_secs());
            Refusal { status: -1, message }
        })??;
        A::parse_from_bytes(&reply).map_err(|error| refused(&error))
    }

    /// The same for a call that the runtime must answer.
    ///
    /// # Panics
    /// Where it refuses.
    #[track_caller]
    pub fn must<Q: Message, A: Message>(&self, method: &str, request: &Q) -> A {
        match self.call(method, request) {
            Ok(reply) => reply,
            Err(Refusal { status, message }) => panic!("{method}: {message} (status {status})"),
        }
    }

    /// The same for a call that the runtime must refuse.
    ///
    /// # Panics
    /// Where it does not.
    #[track_caller]
    pub fn refuses<Q: Message>(&self, method: &str, request: &Q) -> Refusal {
        match self.call::<Q, Empty>(method, request) {
            Ok(_) => panic!("{method} was not refused"),
            Err(refusal) => refusal,
        }
    }

    /// Whether the runtime and its network are ready.
    pub fn is_ready(&self) -> bool {
        let status: Result<StatusResponse, _> = self.call("Status", &StatusRequest::new());
        status.is_ok_and(|reply| {
            let holds =
                |kind| reply.status.conditions.iter().any(|found| found.type_ == kind && found.status);
            holds("RuntimeReady") && holds("NetworkReady")
        })
    }

    /// Calls a method that answers with a stream, over a connection of its own.
    ///
    /// # Panics
    /// Where the request cannot be sent.
    #[track_caller]
    pub fn follow<Q: Message>(&self, method: &str, request: &Q) -> Answers {
        let cri = self.again();
        let bytes = request.write_to_bytes().expect("a message");
        let sent = cri.runtime.block_on(send(cri.connection.clone(), path(method), &bytes));
        let (response, _) = sent.expect("a request that can be sent");
        Answers { cri, response: Some(response), body: None, read: BytesMut::new() }
    }
}

/// What a runtime goes on answering.
pub struct Answers {
    cri: Cri,
    /// Until the headers are there, which come with the first answer.
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    read: BytesMut,
}

impl Answers {
    /// The next answer.
    ///
    /// # Panics
    /// Where none comes.
    #[track_caller]
    pub fn answer<A: Message>(&mut self) -> A {
        self.answer_within(LIMIT).expect("an answer in time")
    }

    /// The next answer, if it comes in this time.
    ///
    /// # Panics
    /// Where the stream ends.
    #[track_caller]
    pub fn answer_within<A: Message>(&mut self, limit: Duration) -> Option<A> {
        let Self { cri, response, body, read } = self;
        let next = async {
            if let Some(waiting) = response.as_mut() {
                let answer = waiting.await.map_err(|error| refused(&error))?;
                *response = None;
                check(answer.headers())?;
                *body = Some(answer.into_body());
            }
            frame(body.as_mut().expect("the headers are there"), read).await
        };
        let frame = cri.runtime.block_on(async { tokio::time::timeout(limit, next).await }).ok()?;
        Some(A::parse_from_bytes(&frame.expect("a stream that goes on")).expect("a message"))
    }
}

/// One length-prefixed message of a stream.
async fn frame(body: &mut RecvStream, read: &mut BytesMut) -> Result<Bytes, Refusal> {
    loop {
        let length = read.get(1..5).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
        if let Some(length) = length.and_then(|length| usize::try_from(length).ok())
            && read.len() >= 5 + length
        {
            read.advance(5);
            return Ok(read.split_to(length).freeze());
        }
        let Some(data) = body.data().await else {
            return Err(Refusal { status: -1, message: "the stream has ended".into() });
        };
        let data = data.map_err(|error| refused(&error))?;
        let _ = body.flow_control().release_capacity(data.len());
        read.extend_from_slice(&data);
    }
}

fn path(method: &str) -> String {
    format!("http://localhost/runtime.v1.RuntimeService/{method}")
}

fn refused(error: &dyn std::error::Error) -> Refusal {
    Refusal { status: -1, message: error.to_string() }
}

/// Sends a call (gRPC over HTTP2): one length-prefixed message.
async fn send(
    client: SendRequest<Bytes>,
    path: String,
    message: &[u8],
) -> Result<(ResponseFuture, h2::SendStream<Bytes>), Refusal> {
    let failed = |error: h2::Error| refused(&error);
    let request = Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|error| refused(&error))?;
    let (response, mut body) =
        client.ready().await.map_err(failed)?.send_request(request, false).map_err(failed)?;
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).map_err(|error| refused(&error))?);
    frame.put_slice(message);
    body.send_data(frame.freeze(), true).map_err(failed)?;
    Ok((response, body))
}

/// One unary call: a message each way, and the status in the trailers.
async fn exchange(client: SendRequest<Bytes>, path: String, message: Vec<u8>) -> Result<Bytes, Refusal> {
    let failed = |error: h2::Error| refused(&error);
    let (response, _body) = send(client, path, &message).await?;
    let response = response.await.map_err(failed)?;
    check(response.headers())?;
    let mut body = response.into_body();
    let mut reply = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(failed)?;
        let _ = body.flow_control().release_capacity(data.len());
        reply.extend_from_slice(&data);
        if reply.len() > MAX_REPLY {
            return Err(Refusal { status: -1, message: "the reply is too long".into() });
        }
    }
    if let Some(trailers) = body.trailers().await.map_err(failed)? {
        check(&trailers)?;
    }
    if reply.len() < 5 {
        return Err(Refusal { status: -1, message: "the reply is too short".into() });
    }
    reply.advance(5);
    Ok(reply.freeze())
}

fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |key: &str| headers.get(key).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(|status| status.parse().unwrap_or(-1)) {
        None | Some(0) => Ok(()),
        Some(status) => Err(Refusal { status, message: text("grpc-message").unwrap_or_default().to_owned() }),
    }
}
