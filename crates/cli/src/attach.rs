//! From the start of a process in the foreground to its end: signals and window sizes go in, the exit status comes out,
//! unless the detach keys are typed before.

use std::collections::HashMap;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::shim::{Shim, ShimError};
use crate::stdio::{StdinEnd, window};

/// Signals that are passed on to the process, as Docker's `--sig-proxy`.
const PASSED_ON: [SignalKind; 6] = [
    SignalKind::interrupt(),
    SignalKind::terminate(),
    SignalKind::hangup(),
    SignalKind::quit(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];

/// How the foreground ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With the process, whose exit status this is.
    Exited(u32),
    /// By the detach keys: the process lives on.
    Detached,
}

/// Waits for the process, or for the detach keys.
pub(crate) async fn until_exit(
    shim: &Shim,
    exec_id: &str,
    tty: bool,
    stdin: Option<oneshot::Receiver<StdinEnd>>,
) -> Result<Outcome, ShimError> {
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
            status = &mut wait => return status.map(Outcome::Exited),
            Some(number) = signals.recv() => {
                // The process may have ended meanwhile: the wait tells.
                let _ = shim.kill(exec_id, number, false).await;
            }
            () = changed(&mut resized) => resize(shim, exec_id).await,
            end = ended(&mut stdin) => match end {
                StdinEnd::Detached => return Ok(Outcome::Detached),
                StdinEnd::Eof => drop(shim.close_stdin(exec_id).await),
            },
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

async fn ended(stdin: &mut Option<oneshot::Receiver<StdinEnd>>) -> StdinEnd {
    match stdin {
        Some(receiver) => {
            // An error tells that the thread is gone, which is the end of the input too.
            let end = receiver.await.unwrap_or(StdinEnd::Eof);
            *stdin = None;
            end
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
