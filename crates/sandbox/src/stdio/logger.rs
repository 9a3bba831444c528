//! containerd's logging programs (`binary://`): they get the output on descriptors 3 and 4 and close 5 when ready.
//!
//! The path comes from the caller of the Task API, who is root; never from a container's configuration (H06).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;

use crate::process::Child;
use crate::sys::{self, Program};

/// For the program to say that it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// For the program to end, once it has the last byte.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Who writes.
#[derive(Debug, Clone, Copy)]
pub struct LogSource<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container.
    pub container: &'a str,
}

/// A running logging program.
#[derive(Debug)]
pub(super) struct Logger {
    child: Child,
    /// Write end of its stdout stream.
    pub(super) stdout: Option<OwnedFd>,
    /// Write end of its stderr stream.
    pub(super) stderr: Option<OwnedFd>,
}

impl Logger {
    /// Starts the program and waits until it is ready.
    pub(super) async fn start(path: &Path, args: &[String], source: LogSource<'_>) -> io::Result<Self> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let (out_read, out_write) = pipe()?;
        let (err_read, err_write) = pipe()?;
        let (ready_read, ready_write) = pipe()?;
        let env = [
            format!("CONTAINER_ID={}", source.container),
            format!("CONTAINER_NAMESPACE={}", source.namespace),
            format!("PATH={}", std::env::var("PATH").unwrap_or_default()),
        ];
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let null = null.as_fd();
        let fds = [null, null, null, out_read.as_fd(), err_read.as_fd(), ready_write.as_fd()];
        let program = Program { path, args, env: &env, fds: &fds, cgroup: None, new_pid_namespace: false };
        let child = Child::new(sys::spawn(&program)?);
        drop((out_read, err_read, ready_write));
        rustix::io::ioctl_fionbio(&ready_read, true)?;
        let ready = sys::watch(ready_read, Interest::READABLE)?;
        let closed = ready.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut [0; 1])?));
        match tokio::time::timeout(READY_TIMEOUT, closed).await {
            Ok(Ok(_)) => Ok(Self { child, stdout: Some(out_write), stderr: Some(err_write) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the logging program did not get ready")),
        }
    }

    /// Waits for its end; the streams are closed. One that does not end is killed.
    pub(super) async fn finish(self) {
        if let Ok(pidfd) =
            self.child.as_fd().try_clone_to_owned().and_then(|fd| sys::watch(fd, Interest::READABLE))
        {
            let _ = tokio::time::timeout(END_TIMEOUT, pidfd.readable()).await;
        }
    }
}
