//! The device thread, and how a device gets threads of its own.
//!
//! A vCPU's system call list has nothing but KVM_RUN. So [`VirtioDevice::activate`], `reset` and `drop` run on one
//! further thread, the vCPU waiting meanwhile. A new thread keeps its maker's list: workers that a device starts there can
//! do what they need, and lose the rest before they run.
//!
//! [`VirtioDevice::activate`]: super::device::VirtioDevice::activate

use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

use crate::jail;
use crate::jail::seccomp::{self, ThreadKind};

/// Stack of a worker: no worker recurses, and what is never touched costs nothing.
const STACK_BYTES: usize = 256 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// Runs what devices do at activation and reset. Dropping the last handle ends the thread.
#[derive(Clone)]
pub struct DeviceThread(Option<mpsc::SyncSender<Job>>);

/// A device thread that is not started: what it will do can be asked for already, and waits.
pub struct DeviceJobs(mpsc::Receiver<Job>);

impl DeviceJobs {
    /// Starts the thread; it restricts itself if the jail is shut.
    ///
    /// # Errors
    /// The thread could not be made.
    pub fn start(self) -> io::Result<()> {
        // It ends with the last handle, that is with the process: nobody joins it.
        spawn_worker(ThreadKind::Devices, "devices", move || self.0.iter().for_each(|job| job()))?;
        Ok(())
    }
}

impl DeviceThread {
    /// A handle, and the thread to start once the jail is shut.
    pub fn new() -> (Self, DeviceJobs) {
        let (sender, jobs) = mpsc::sync_channel(1);
        (Self(Some(sender)), DeviceJobs(jobs))
    }

    /// No thread: jobs run where they are asked for.
    pub fn none() -> Self {
        Self(None)
    }

    /// Runs `job` and waits for what it returns; none if the thread is gone.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let Some(sender) = &self.0 else { return Some(job()) };
        let (done, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || {
            let _ = done.send(job());
        });
        sender.send(job).ok()?;
        result.recv().ok()
    }
}

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
    fn device_thread_returns_what_a_job_returns() {
        let (thread, jobs) = DeviceThread::new();
        jobs.start().unwrap();
        let name = thread.run(|| std::thread::current().name().map(str::to_owned));
        assert_eq!(name.flatten().as_deref(), Some("devices"));
        assert_eq!(DeviceThread::none().run(|| 7), Some(7));
    }

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
