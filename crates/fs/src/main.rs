//! `nacre-fs`: host files and directories for one guest, over virtio-fs (virtio 1.2, section 5.11).
//!
//! Owns a vhost-user device whose FUSE server (fuse-backend-rs) shows one directory with an entry for each share.
//! Everything that the guest sends is hostile: the walls are the mount namespace, which holds the shares and
//! nothing else, mounted without devices and set-uid programs and read-only where asked; the user's capabilities,
//! cut to those that file ownership needs; and the system call list.
//!
//! ```text
//! start message (protocol::fs) -> jail: mounts -> file system on the new root -> capabilities, seccomp -> serve
//!                              `-> change: mounts in the namespace of a server that runs, and the end
//! ```

mod backend;
mod change;
mod guard;
mod jail;
mod mounts;
mod start;
mod sys;
mod versions;

use std::process::ExitCode;
use std::thread;

use fuse_backend_rs::api::server::Server;
use nacre_protocol::control::{Failure, FailureKind};
use vhost_fs::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory_fs::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::backend::FsBackend;
use crate::start::{Owner, ShareFile, StartError, Started};

fn main() -> ExitCode {
    let owner = match Owner::inherited() {
        Ok(owner) => owner,
        Err(error) => {
            eprintln!("nacre-fs: {error}: this program is started by containerd-shim-nacre-v2");
            return ExitCode::from(2);
        }
    };
    match run(&owner) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The owner may be gone, and then nobody is left to tell.
            let _ = owner.reply(&Err(failure(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("the start message cannot be used")]
    Start(#[from] StartError),
    #[error("the jail cannot be made")]
    Jail(#[from] jail::JailError),
    #[error("the shares cannot be opened")]
    FileSystem(#[source] std::io::Error),
    #[error("the vhost-user device failed: {0}")]
    Device(String),
    #[error("a thread cannot be started")]
    Thread(#[source] std::io::Error),
}

fn run(owner: &Owner) -> Result<(), RunError> {
    match owner.receive()? {
        Started::Serve { listener, shares } => serve(owner, listener, shares),
        Started::Change { server, add, remove } => {
            change::change(&server, add, &remove)?;
            Ok(owner.reply(&Ok(()))?)
        }
    }
}

fn serve(owner: &Owner, mut listener: Listener, shares: Vec<ShareFile>) -> Result<(), RunError> {
    let root = jail::mount_shares(shares)?;
    let server = Server::new(backend::file_system().map_err(RunError::FileSystem)?);
    jail::enter(&root)?;
    let device = |error: vhost_user_backend::Error| RunError::Device(error.to_string());
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::<()>::new());
    let mut daemon =
        VhostUserDaemon::new("vhost-user".to_owned(), FsBackend::shared(server, memory.clone()), memory)
            .map_err(device)?;
    daemon.start(&mut listener).map_err(device)?;
    let owner_gone = owner.try_clone()?;
    thread::Builder::new()
        .name("owner".to_owned())
        .spawn(move || {
            owner_gone.wait_until_gone();
            std::process::exit(0);
        })
        .map_err(RunError::Thread)?;
    jail::restrict_threads()?;
    owner.reply(&Ok(()))?;
    let ended = daemon.wait();
    // Dropping the device would wait for its queue thread, which has no reason to end; the process ends it.
    std::mem::forget(daemon);
    // The other side hanging up is the ordinary end.
    match ended {
        Ok(()) => Ok(()),
        Err(vhost_user_backend::Error::HandleRequest(error)) => {
            tracing::debug!(%error, "the VMM hung up");
            Ok(())
        }
        Err(error) => Err(device(error)),
    }
}

/// The chain of causes on one line, as the owner prints it.
fn failure(error: &RunError) -> Failure {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message.push_str(": ");
        message.push_str(&inner.to_string());
        cause = inner.source();
    }
    let kind = match error {
        RunError::Start(_) => FailureKind::Invalid,
        RunError::Jail(_) => FailureKind::Jail,
        RunError::Thread(_) => FailureKind::Resources,
        RunError::FileSystem(_) | RunError::Device(_) => FailureKind::Device,
    };
    Failure { kind, message }
}
