//! The control connection: ttrpc, with the agent as server, on the one connection that it opened to the host.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use nacre_protocol::ports::{CONTROL_PORT, HOST_CID, STREAM_PORT, TUNNEL_PORT};
use nacre_protocol::rpc::agent_ttrpc::create_agent;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::agent::Agent;
use crate::container;
use crate::service::Service;
use crate::stream::accept_hosts;
use crate::tunnel::accept_tunnels;

/// How long the host may take to close the connection after the reply to Shutdown, which it thereby has.
const FAREWELL: Duration = Duration::from_secs(1);

/// A server that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The guest has no vsock device, or the port is taken.
    #[error("cannot listen on vsock port {port}")]
    Listen {
        /// The port.
        port: u32,
        /// Why.
        source: io::Error,
    },
    /// The host does not take the connection.
    #[error("cannot connect to vsock port {CONTROL_PORT} of the host")]
    Connect(#[source] io::Error),
    /// ttrpc refused to start.
    #[error("cannot serve on the control connection")]
    Serve(#[source] ttrpc::Error),
}

/// Opens the vsock doors and serves the host until it goes away or has asked for the end.
///
/// # Errors
/// [`ServerError`].
pub async fn run(agent: Arc<Agent>) -> Result<(), ServerError> {
    // While the host answers; creation does without what fails here, and then says why.
    let guest = agent.guest.clone();
    spawn_blocking(move || {
        if let Err(error) = container::warm_up(&guest) {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot prepare for containers");
        }
    });
    tokio::spawn(accept_hosts(listen(STREAM_PORT)?, Arc::clone(&agent.streams)));
    tokio::spawn(accept_tunnels(listen(TUNNEL_PORT)?, Arc::clone(&agent.guest.sockets)));
    let host = VsockAddr::new(HOST_CID, CONTROL_PORT);
    let control = VsockStream::connect(host).await.map_err(ServerError::Connect)?;
    agent.ready();
    serve(control, agent).await
}

fn listen(port: u32) -> Result<VsockListener, ServerError> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
        .map_err(|source| ServerError::Listen { port, source })
}

/// Serves one connection until its end.
///
/// # Errors
/// [`ServerError::Serve`].
pub async fn serve<S>(control: S, agent: Arc<Agent>) -> Result<(), ServerError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
{
    let (open, mut closed) = watch::channel(());
    let control = Watched { inner: control, open: Some(open) };
    // The only connection there will ever be; a listener that ended would end the server.
    let incoming = stream::iter([Ok(control)]).chain(stream::pending());
    let mut server = Server::new()
        .add_listener(Listener::new(incoming))
        .register_service(create_agent(Arc::new(Service::new(Arc::clone(&agent)))));
    server.start().await.map_err(ServerError::Serve)?;
    tokio::select! {
        _ = closed.changed() => {}
        () = agent.leaving.notified() => {
            let _ = timeout(FAREWELL, closed.changed()).await;
        }
    }
    Ok(())
}

/// A connection that tells when it has ended: ttrpc's server does not.
#[derive(Debug)]
struct Watched<S> {
    inner: S,
    /// Dropped at the end of file, at an error, or with the connection.
    open: Option<watch::Sender<()>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let wanted = buf.remaining() > 0;
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) if wanted && buf.filled().len() == before => self.open = None,
            Poll::Ready(Err(_)) => self.open = None,
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Err(_)) = &written {
            self.open = None;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
