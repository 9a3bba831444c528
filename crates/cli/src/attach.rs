//! From the start of a process in the foreground to its end: signals and window sizes go in, the exit status comes out.

use std::collections::HashMap;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::shim::{Shim, ShimError};
use crate::stdio::window;

/// Signals that are passed on to the process, as Docker's `--sig-proxy`.
const PASSED_ON: [SignalKind; 6] = [
    SignalKind::interrupt(),
    SignalKind::terminate(),
    SignalKind::hangup(),
    SignalKind::quit(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];

/// Waits for the process and tells its exit status.
pub(crate) async fn until_exit(
    shim: &Shim,
    exec_id: &str,
    tty: bool,
    stdin: Option<oneshot::Receiver<()>>,
) -> Result<u32, ShimError> {
    let mut signals = passed_on();
    let mut resized = tty.then(|| signal(SignalKind::window_change()).ok()).flatten();
    if tty {
        resize(shim, exec_id).await;
    }
    let mut stdin = stdin;
    let wait = shim.wait(exec_id);
    tokio::pin!(wait);
    loop {
        tokio::select! {
            status = &mut wait => return status,
            Some(number) = signals.recv() => {
                // The process may have ended meanwhile: the wait tells.
                let _ = shim.kill(exec_id, number, false).await;
            }
            () = changed(&mut resized) => resize(shim, exec_id).await,
            () = ended(&mut stdin) => {
                let _ = shim.close_stdin(exec_id).await;
            }
        }
    }
}

/// One channel for all signals. A signal that cannot be watched keeps its ordinary effect on this process.
fn passed_on() -> mpsc::Receiver<u32> {
    let (sender, receiver) = mpsc::channel(8);
    let watched: HashMap<_, Signal> =
        PASSED_ON.into_iter().filter_map(|kind| Some((kind.as_raw_value(), signal(kind).ok()?))).collect();
    for (number, mut stream) in watched {
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if sender.send(number.unsigned_abs()).await.is_err() {
                    return;
                }
            }
        });
    }
    receiver
}

async fn changed(stream: &mut Option<Signal>) {
    if let Some(stream) = stream
        && stream.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

async fn ended(stdin: &mut Option<oneshot::Receiver<()>>) {
    match stdin {
        Some(receiver) => {
            // An error tells that the thread is gone, which is the end of the input too.
            let _ = receiver.await;
            *stdin = None;
        }
        None => std::future::pending().await,
    }
}

async fn resize(shim: &Shim, exec_id: &str) {
    if let Some((width, height)) = window() {
        // A size that does not arrive is corrected by the next change.
        let _ = shim.resize(exec_id, width, height).await;
    }
}
