//! How a device gets a thread.
//!
//! A device starts its workers in [`VirtioDevice::activate`](super::device::VirtioDevice::activate), which runs
//! on the device thread, never on a vCPU's: a new thread keeps its maker's system call list, and a vCPU's is too
//! short for any worker.

use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

use crate::jail;
use crate::jail::seccomp::{self, ThreadKind};

/// Stack of a worker: no worker recurses, and what is never touched costs nothing.
const STACK_BYTES: usize = 256 * 1024;

/// Runs `work` on a new thread with the name (at most 15 bytes are seen in /proc) and the system calls of `kind`.
///
/// Before the jail is shut (unit tests) the thread is not restricted.
///
/// # Errors
/// The thread could not be made, or did not get its restrictions; `work` then does not run.
pub fn spawn_worker<F>(kind: ThreadKind, name: &str, work: F) -> io::Result<JoinHandle<()>>
where
    F: FnOnce() + Send + 'static,
{
    let builder = Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
    if !jail::is_shut() {
        return builder.spawn(work);
    }
    let (ready, confined) = mpsc::sync_channel(1);
    let thread = builder.spawn(move || {
        let outcome = seccomp::install(kind);
        let go = outcome.is_ok();
        let _ = ready.send(outcome);
        if go {
            work();
        }
    })?;
    match confined.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(error) => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_runs_under_its_name() {
        let (tell, told) = mpsc::channel();
        let worker = spawn_worker(ThreadKind::Rng, "rng0", move || {
            tell.send(std::thread::current().name().map(str::to_owned)).unwrap();
        })
        .unwrap();
        assert_eq!(told.recv().unwrap().as_deref(), Some("rng0"));
        worker.join().unwrap();
    }
}
