//! `nacre-fs`, as its owner sees it: started with open descriptors, ended with the VM. What a server serves is changed by a
//! second process of the same program, since the first is in its jail.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nacre_protocol::fs::{Change, Order, Share as ShareMessage, Start, StartReply};

use crate::channel::{self, Channel, ChannelError, FdTable};
use crate::plan::Share;
use crate::process::Child;
use crate::storage::OpenShares;
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
    #[error("the file server refused: {0}")]
    Refused(String),
    /// It ended before it said anything.
    #[error("the file server died before it served ({0})")]
    Died(crate::process::End),
    /// No answer.
    #[error("the file server did not answer within {} ms", .0.as_millis())]
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
        let (child, channel) = spawn(place)?;
        Ok(Self { child, channel })
    }

    /// Tells it what to serve; returns the VMM's end of the vhost-user connection once it does. The socket that
    /// the connection needs a name for is made in `dir` and gone when this returns.
    ///
    /// # Errors
    /// See [`FileServerError`].
    pub async fn start(
        &self,
        shares: &[Share],
        open: &OpenShares,
        dir: &Path,
        timeout: Duration,
    ) -> Result<OwnedFd, FileServerError> {
        let (listener, for_vmm) = waiting_connection(dir).map_err(FileServerError::Socket)?;
        let mut fds = FdTable::default();
        let listener = fds.add(&listener);
        let order = Order::Serve(Start { listener, shares: entries(shares, open, &mut fds) });
        carry_out(&self.child, &self.channel, &order, &fds, timeout).await?;
        Ok(for_vmm.into())
    }

    /// Adds shares, or takes some away by their names, and waits until that is done.
    ///
    /// # Errors
    /// See [`FileServerError`].
    pub async fn change(
        &self,
        program: &Path,
        add: (&[Share], &OpenShares),
        remove: &[String],
        timeout: Duration,
    ) -> Result<(), FileServerError> {
        // In the host's PID namespace and cgroup: it is ours, and gone in a moment.
        let (child, channel) = spawn(&Place { program, cgroup: None, new_pid_namespace: false })?;
        let pidfd = self.child.as_fd().try_clone_to_owned().map_err(FileServerError::Socket)?;
        let mut fds = FdTable::default();
        let server = fds.add(&pidfd);
        let add = entries(add.0, add.1, &mut fds);
        let order = Order::Change(Change { server, add, remove: remove.to_vec() });
        let done = carry_out(&child, &channel, &order, &fds, timeout).await;
        if matches!(done, Err(FileServerError::Timeout(_))) {
            // It may hang in a volume, and who reaps it hangs with it.
            tokio::task::spawn_blocking(move || drop(child));
        }
        done
    }

    /// The process.
    pub fn child(&self) -> &Child {
        &self.child
    }
}

fn spawn(place: &Place<'_>) -> Result<(Child, Channel), FileServerError> {
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
    Ok((Child::new(spawned), channel))
}

fn entries<'a>(shares: &[Share], open: &'a OpenShares, fds: &mut FdTable<'a>) -> Vec<ShareMessage> {
    let user_namespace = open.user_namespace.as_ref().map(|users| fds.add(users));
    let entry = |(share, file): (&Share, &'a OwnedFd)| {
        let file = fds.add(file);
        let Share { name, read_only, submounts, id_mapped, .. } = share;
        ShareMessage {
            name: name.clone(),
            file,
            read_only: *read_only,
            submounts: *submounts,
            user_namespace: user_namespace.filter(|_| *id_mapped),
        }
    };
    shares.iter().zip(&open.files).map(entry).collect()
}

/// Sends the order and waits for the answer.
async fn carry_out(
    child: &Child,
    channel: &Channel,
    order: &Order,
    fds: &FdTable<'_>,
    timeout: Duration,
) -> Result<(), FileServerError> {
    let exchange = async {
        channel.send(order, fds.as_slice()).await?;
        channel.receive::<StartReply>().await
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(Ok(Some(Ok(())))) => Ok(()),
        Ok(Ok(Some(Err(failure)))) => Err(FileServerError::Refused(harmless(&failure.message, 1024))),
        Ok(Ok(None)) | Ok(Err(ChannelError::Socket(_))) => {
            child.kill();
            Err(FileServerError::Died(child.reap()))
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(FileServerError::Timeout(timeout)),
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
