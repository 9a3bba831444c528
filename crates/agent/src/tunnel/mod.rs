//! Tunnels from the sandbox's network namespace on the host to the guest's loopback, and for name queries the other way
//! round (module [`nacre_protocol::tunnel`]).
//!
//! ```text
//! host ── vsock TUNNEL_PORT ── hello ── connect.rs ── TCP connection to a container's server
//!                                   ├── client.rs ─── the next client of a socket that stands in for one of the host's
//!                                   └── names.rs ──── sockets for port 53 of an address, steered to by BPF
//! ```

mod client;
mod connect;
mod names;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::ports::HOST_CID;
use nacre_protocol::tunnel::{HELLO_LEN, MAX_TUNNELS, OPEN, OPEN_TIMEOUT_S, Tunnel};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_vsock::VsockListener;

use crate::container::Sockets;

/// How long to wait where accepting fails (no descriptors, no memory), so that it cannot become a busy loop.
const PAUSE: Duration = Duration::from_millis(50);

/// For the hello to come, and for what it asks for to be done.
const TIMEOUT: Duration = Duration::from_secs(OPEN_TIMEOUT_S);

/// What a tunnel is made of.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Accepts tunnels from the host, and from nobody else.
pub async fn accept_tunnels(listener: VsockListener, sockets: Arc<Sockets>) {
    let places = Arc::new(Semaphore::new(MAX_TUNNELS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, peer)) if peer.cid() == HOST_CID => stream,
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!(%error, "tunnel not accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("tunnel refused: there are {MAX_TUNNELS}");
            continue;
        };
        let sockets = Arc::clone(&sockets);
        tokio::spawn(async move {
            if let Err(error) = serve(stream, sockets).await {
                tracing::debug!(%error, "tunnel ended");
            }
            drop(place);
        });
    }
}

/// Serves one tunnel to its end.
async fn serve(mut stream: impl Stream, sockets: Arc<Sockets>) -> io::Result<()> {
    let mut hello = [0; HELLO_LEN];
    timeout(TIMEOUT, stream.read_exact(&mut hello)).await??;
    match Tunnel::from_hello(&hello).map_err(io::Error::other)? {
        Tunnel::Connect(address) => connect::serve(stream, address).await,
        Tunnel::Names(address) => names::serve(stream, address).await,
        Tunnel::Client(number) => client::serve(stream, sockets.listener(number).as_deref()).await,
    }
}

/// Tells the host how it went: whoever failed is done.
async fn answer<T>(stream: &mut impl Stream, result: io::Result<T>) -> io::Result<T> {
    match result {
        Ok(value) => {
            stream.write_all(&[OPEN]).await?;
            Ok(value)
        }
        Err(error) => {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            let byte = u8::try_from(errno.raw_os_error()).unwrap_or(u8::MAX);
            stream.write_all(&[byte]).await?;
            Err(error)
        }
    }
}

#[cfg(test)]
fn no_sockets() -> Arc<Sockets> {
    Arc::new(Sockets::new("/nonexistent".into()))
}
