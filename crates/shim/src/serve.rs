//! The server process: one thread, one sandbox, and an orderly end.

use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use containerd_shim_protos::ttrpc::asynchronous::Server as RpcServer;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use futures_util::stream;
use nacre_sandbox::machine::Settings;
use nacre_sandbox::sandbox::{self, Force, Sandbox};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::publisher::Publisher;
use crate::sandbox::{self as sandbox_api, SandboxService};
use crate::service;
use crate::socket;
use crate::start::Server;

/// A shim that nobody asks for a container ends: its caller died between start and Create.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// For the last answer to reach its caller.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Serves until the sandbox is over.
pub(crate) fn serve(server: Server, listener: StdUnixListener) -> Result<()> {
    // One thread: it mostly waits, and memory counts for every container.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot make a runtime")?;
    let path = server.socket.clone();
    if let Err(error) = socket::own(&path) {
        warn!(error = &error as &dyn std::error::Error, "delete will not find this shim");
    }
    let result = runtime.block_on(run(server, listener));
    // A call on a volume that hangs must not keep the process.
    runtime.shutdown_background();
    socket::remove(&path);
    result
}

async fn run(server: Server, listener: StdUnixListener) -> Result<()> {
    listener.set_nonblocking(true).context("cannot use the socket")?;
    let listener = UnixListener::from_std(listener).context("cannot use the socket")?;
    let publisher = Publisher::from_env(server.namespace.as_str());
    let (sandbox, events) = sandbox::spawn(Settings {
        namespace: server.namespace,
        id: server.id.clone(),
        run_dir: server.run_dir,
        config: server.config,
        files: vec![server.socket],
    });
    let mut rpc = RpcServer::new()
        .add_listener(trusted(listener))
        .register_service(service::services(Arc::new(service::TaskService::new(sandbox.clone()))))
        .register_service(sandbox_api::services(Arc::new(SandboxService::new(
            server.id.clone(),
            sandbox.clone(),
        ))));
    rpc.start().await.context("cannot serve")?;
    info!(sandbox = %server.id, pid = std::process::id(), "shim started");

    let signals = tokio::spawn(end_on_signal(sandbox.clone()));
    let idle = tokio::spawn(end_when_idle(sandbox));
    // Returns after the sandbox's last event.
    publisher.run(events).await;
    signals.abort();
    idle.abort();
    let _ = tokio::time::timeout(LAST_ANSWER, rpc.shutdown()).await;
    info!(sandbox = %server.id, "shim ended");
    Ok(())
}

/// Connections of this user and of root; the socket's mode and directory already keep others out (H01).
fn trusted(listener: UnixListener) -> Listener {
    let own = rustix::process::geteuid().as_raw();
    Listener::new(stream::unfold(listener, move |listener| async move {
        loop {
            match listener.accept().await {
                Ok((connection, _)) if is_trusted(&connection, own) => {
                    return Some((Ok(connection), listener));
                }
                Ok(_) => warn!("a connection of another user was dropped"),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "cannot accept a connection");
                    // Out of descriptors, most likely: trying again at once would only spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }))
}

fn is_trusted(connection: &UnixStream, own: u32) -> bool {
    connection.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

/// SIGTERM and SIGINT take everything down.
async fn end_on_signal(sandbox: Sandbox) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return warn!("signals cannot be caught");
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    info!("ending on a signal");
    let _ = sandbox.shutdown(Force::Now).await;
}

async fn end_when_idle(sandbox: Sandbox) {
    tokio::time::sleep(IDLE_TIMEOUT).await;
    if sandbox.shutdown(Force::Empty).await.unwrap_or(false) {
        warn!("ending: no container was asked for");
    }
}
