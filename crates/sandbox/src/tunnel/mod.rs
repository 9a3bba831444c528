//! Tunnels between the sandbox's network namespace and the guest's loopback (module [`nacre_protocol::tunnel`]).
//!
//! ```text
//! loopback.rs  connections to the namespace's loopback --> the guest's (Kubernetes' port-forward)
//! socket.rs    clients of a socket in the guest --> the socket of the host that it stands in for (hostPath)
//! names.rs     name queries of the guest --> Docker's name server on the namespace's loopback
//! ```
//!
//! Each is a task that lives as long as its VM. Without them a sandbox is whole but for what they lead to: what fails here
//! is logged and ends no container.

mod loopback;
mod names;
mod socket;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nacre_protocol::ports::TUNNEL_PORT;
use nacre_protocol::tunnel::{OPEN, OPEN_TIMEOUT_S, Tunnel};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::warn;

use crate::network::Namespace;
use crate::stdio::Dialer;

/// For the agent to say that a tunnel is open; it gives up a little earlier.
const TIMEOUT: Duration = Duration::from_secs(OPEN_TIMEOUT_S + 2);

/// A task that ends when this is dropped.
#[derive(Debug)]
pub struct Served(JoinHandle<()>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Leads connections to 127.0.0.1 and ::1 in the namespace to the same address and port of the guest.
pub fn serve_loopback(namespace: Namespace, dialer: Dialer) -> Served {
    serve("connections to the pod's loopback", loopback::serve(namespace, dialer))
}

/// Leads clients of the guest's socket of this number to a socket of the host, a descriptor of whose file is given.
pub fn serve_socket(socket: OwnedFd, number: u32, dialer: Dialer) -> Served {
    serve("clients of a socket of the host", socket::serve(socket, number, dialer))
}

/// Leads name queries of the guest to Docker's name server in the namespace.
pub fn serve_names(namespace: Namespace, dialer: Dialer) -> Served {
    serve("name queries", names::serve(namespace, dialer))
}

fn serve(what: &'static str, task: impl Future<Output = io::Result<()>> + Send + 'static) -> Served {
    Served(tokio::spawn(async move {
        if let Err(error) = task.await {
            warn!(%error, "{what} do not reach their end");
        }
    }))
}

/// Opens a tunnel of the guest's agent.
async fn open(dialer: &Dialer, tunnel: Tunnel) -> io::Result<UnixStream> {
    let opened = async {
        let mut stream = dialer.connect(TUNNEL_PORT, &tunnel.hello()).await?;
        match stream.read_u8().await? {
            OPEN => Ok(stream),
            errno => Err(io::Error::from_raw_os_error(i32::from(errno))),
        }
    };
    timeout(TIMEOUT, opened).await?
}

#[cfg(test)]
mod tests;
