//! The doors that stream connections come in by.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::ports::HOST_CID;
use tokio::net::UnixListener;
use tokio::time::sleep;
use tokio_vsock::VsockListener;

use super::unclaimed::Unclaimed;

/// How long to wait where accepting fails (no descriptors, no memory), so that it cannot become a busy loop.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts from the host, and from nobody else: in a kernel with a vsock loopback, which nacre's is not, processes of the
/// guest would reach the port as well.
pub async fn accept_hosts(listener: VsockListener, unclaimed: Arc<Unclaimed>) {
    loop {
        match listener.accept().await {
            Ok((connection, peer)) if peer.cid() == HOST_CID => unclaimed.admit(OwnedFd::from(connection)),
            Ok(_) => {}
            Err(error) => pause(&error).await,
        }
    }
}

/// Accepts on a Unix socket, which takes the place of vsock in tests on a host.
pub async fn accept_unix(listener: UnixListener, unclaimed: Arc<Unclaimed>) {
    loop {
        match listener.accept().await.and_then(|(connection, _)| connection.into_std()) {
            Ok(connection) => unclaimed.admit(OwnedFd::from(connection)),
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "stream connection not accepted");
    sleep(PAUSE).await;
}
