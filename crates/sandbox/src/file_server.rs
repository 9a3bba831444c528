//! `nacre-fs`, as its owner sees it: started with open descriptors, ended with the VM.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nacre_protocol::fs::{Share as ShareMessage, Start, StartReply};

use crate::channel::{self, Channel, ChannelError, FdTable};
use crate::plan::Share;
use crate::process::Child;
use crate::sys::{self, Program};
use crate::text::harmless;
use crate::vm::Place;

/// A file server that does not serve.
#[derive(Debug, thiserror::Error)]
pub enum FileServerError {
    /// A socket could not be made.
    #[error("cannot make the file server's sockets")]
    Socket(#[source] io::Error),
    /// The process could not be started.
    #[error("cannot start {path}")]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The start socket failed.
    #[error("cannot speak to the file server")]
    Channel(#[from] ChannelError),
    /// It says no.
    #[error("the file server refused to start: {0}")]
    Refused(String),
    /// It ended before it said anything.
    #[error("the file server died before it served ({0})")]
    Died(crate::process::End),
    /// No answer.
    #[error("the file server did not start within {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// A file server. Dropping it ends it.
#[derive(Debug)]
pub struct FileServer {
    child: Child,
    channel: Channel,
}

impl FileServer {
    /// Starts the process; the vhost-user socket for the VMM comes with it.
    ///
    /// # Errors
    /// See [`FileServerError`].
    pub fn spawn(place: &Place<'_>) -> Result<Self, FileServerError> {
        let (channel, control) = channel::pair().map_err(FileServerError::Socket)?;
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(FileServerError::Socket)?;
        let stderr = io::stderr();
        let spawned = sys::spawn(&Program {
            path: place.program,
            args: &[],
            env: &[],
            fds: &[null.as_fd(), null.as_fd(), stderr.as_fd(), control.as_fd()],
            cgroup: place.cgroup,
            new_pid_namespace: place.new_pid_namespace,
        })
        .map_err(|source| FileServerError::Spawn { path: place.program.to_owned(), source })?;
        Ok(Self { child: Child::new(spawned), channel })
    }

    /// Tells it what to serve; returns the VMM's end of the vhost-user connection once it does. The socket that
    /// the connection needs a name for is made in `dir` and gone when this returns.
    ///
    /// # Errors
    /// See [`FileServerError`].
    pub async fn start(
        &self,
        shares: &[Share],
        files: &[OwnedFd],
        dir: &Path,
        timeout: Duration,
    ) -> Result<OwnedFd, FileServerError> {
        let (listener, for_vmm) = waiting_connection(dir).map_err(FileServerError::Socket)?;
        let mut fds = FdTable::default();
        let listener = fds.add(&listener);
        let mut entries = Vec::with_capacity(shares.len());
        for (share, file) in shares.iter().zip(files) {
            let file = fds.add(file);
            entries.push(ShareMessage { name: share.name.clone(), file, read_only: share.read_only });
        }
        let message = Start { listener, shares: entries };

        let exchange = async {
            self.channel.send(&message, fds.as_slice()).await?;
            self.channel.receive::<StartReply>().await
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(Ok(Some(Ok(())))) => Ok(for_vmm.into()),
            Ok(Ok(Some(Err(failure)))) => Err(FileServerError::Refused(harmless(&failure.message, 1024))),
            Ok(Ok(None)) | Ok(Err(ChannelError::Socket(_))) => {
                self.child.kill();
                Err(FileServerError::Died(self.child.reap()))
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(FileServerError::Timeout(timeout)),
        }
    }

    /// The process.
    pub fn child(&self) -> &Child {
        &self.child
    }
}

/// A listening socket without a name any more, on which one connection waits.
fn waiting_connection(dir: &Path) -> io::Result<(UnixListener, UnixStream)> {
    let path = dir.join("fs");
    let listener = crate::socket::listen(&path)?;
    let connection = crate::socket::connect(&path);
    std::fs::remove_file(&path)?;
    Ok((listener, connection?))
}
