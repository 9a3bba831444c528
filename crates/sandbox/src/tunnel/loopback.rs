//! Connections to the namespace's loopback.
//!
//! containerd's port-forward connects to `localhost` in the pod's namespace. One socket listens there and is given the
//! connections to every port by BPF, so that nothing has to be known of the ports, and no rule of a packet filter is left behind.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nacre_bpf::{Destination, Steering, Transport, steer};
use nacre_protocol::tunnel::{MAX_TUNNELS, Tunnel};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::debug;

use super::open;
use crate::network::Namespace;
use crate::stdio::Dialer;

/// How long to wait where accepting fails (no descriptors, no memory), so that it cannot become a busy loop.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn serve(namespace: Namespace, dialer: Dialer) -> io::Result<()> {
    let (listener, _steering) = tokio::task::spawn_blocking(move || listen(&namespace)).await??;
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MAX_TUNNELS));
    loop {
        // Where there are too many, the next ones wait in the kernel.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                debug!(%error, "connection to the pod's loopback not accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let dialer = dialer.clone();
        tokio::spawn(async move {
            if let Err(error) = lead(connection, &dialer).await {
                debug!(%error, "connection to the pod's loopback ended");
            }
            drop(place);
        });
    }
}

fn listen(namespace: &Namespace) -> io::Result<(StdTcpListener, Steering)> {
    let listener = namespace.inside(|| {
        // A host may do without IPv6.
        StdTcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
            .or_else(|_| StdTcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))
    });
    let listener = listener.map_err(io::Error::other)?;
    listener.set_nonblocking(true)?;
    let addresses: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let wanted = addresses.map(|address| {
        let every_port = Destination { transport: Transport::Tcp, address, port: None };
        (every_port, listener.as_fd())
    });
    let steering = steer(namespace, &wanted)?;
    Ok((listener, steering))
}

async fn lead(mut connection: TcpStream, dialer: &Dialer) -> io::Result<()> {
    let to = connection.local_addr()?;
    let to = SocketAddr::new(to.ip().to_canonical(), to.port());
    if !to.ip().is_loopback() {
        return Err(io::Error::other("it came by another address"));
    }
    match open(dialer, Tunnel::Connect(to)).await {
        Ok(mut stream) => copy_bidirectional(&mut connection, &mut stream).await.map(drop),
        Err(error) => {
            // As if nobody had listened, as near as one gets: a reset.
            connection.set_zero_linger()?;
            Err(error)
        }
    }
}
