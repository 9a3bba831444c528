//! The device towards the transport.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::eventfd::EventFd;

use super::session::Session;
use super::worker::FsWorker;
use super::{CONFIG_LEN, DEVICE_ID, QUEUE_SIZES, TAG_LEN};
use crate::jail::seccomp::ThreadKind;
use crate::virtio::config::{put, read};
use crate::virtio::device::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use crate::virtio::queue::BASE_FEATURES;
use crate::virtio::worker::{Poller, Worker, new_event};

/// A share that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// Empty, or longer than the device can tell.
    #[error("a mount tag has 1 to 36 bytes, this one has {0}")]
    Tag(usize),
    /// The socket cannot be watched.
    #[error("the file server's socket cannot be used")]
    Socket(#[source] io::Error),
}

/// A virtio-fs device.
pub struct Fs {
    config: [u8; CONFIG_LEN],
    session: Session,
    /// The session's socket, to see its end.
    socket: UnixStream,
    active: Option<Active>,
}

struct Active {
    worker: Worker<FsWorker>,
    kicks: Vec<EventFd>,
}

impl Fs {
    /// A share with this mount tag, served over a connected vhost-user socket. Nothing is said on it before a driver
    /// comes.
    ///
    /// # Errors
    /// [`FsError`].
    pub fn new(tag: &str, socket: OwnedFd) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > TAG_LEN {
            return Err(FsError::Tag(tag.len()));
        }
        let mut config = [0; CONFIG_LEN];
        put(&mut config, 0, tag.as_bytes());
        put(&mut config, TAG_LEN, &1u32.to_le_bytes());
        let socket = UnixStream::from(socket);
        // The conversation is one question, one answer.
        socket.set_nonblocking(false).map_err(FsError::Socket)?;
        let session = Session::new(socket.try_clone().map_err(FsError::Socket)?);
        Ok(Self { config, session, socket, active: None })
    }

    fn start(&mut self, activation: Activation) -> Result<Active, ActivateError> {
        let Activation { memory, features, queues, interrupt } = activation;
        let queues: Vec<ActiveQueue> = queues
            .into_iter()
            .enumerate()
            .map(|(index, queue)| queue.ok_or(ActivateError::QueueNotReady(index)))
            .collect::<Result<_, _>>()?;
        let calls: Vec<EventFd> = queues.iter().map(|_| new_event()).collect::<Result<_, _>>()?;
        let pairs: Vec<_> = queues.iter().zip(&calls).collect();
        if pairs.len() != QUEUE_SIZES.len() {
            return Err(ActivateError::QueueNotReady(pairs.len()));
        }
        self.session.start(&memory, features, &pairs).map_err(ActivateError::Backend)?;
        let worker = self.watch(calls, interrupt).inspect_err(|_| {
            // Queues whose events nobody hears must not be served.
            let _ = self.session.stop();
        })?;
        Ok(Active { worker, kicks: queues.into_iter().map(|queue| queue.kick).collect() })
    }

    fn watch(&self, calls: Vec<EventFd>, interrupt: Interrupt) -> Result<Worker<FsWorker>, ActivateError> {
        let poller = Poller::new().map_err(ActivateError::Event)?;
        let serve = FsWorker::new(calls, &self.socket, interrupt, &poller)?;
        Worker::spawn(ThreadKind::Fs, "fs", poller, serve)
    }
}

impl VirtioDevice for Fs {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        BASE_FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.active = Some(self.start(activation)?);
        Ok(())
    }

    fn reset(&mut self) {
        let Some(active) = self.active.take() else { return };
        if let Err(error) = self.session.stop() {
            // It is gone, and with it whatever used guest memory.
            tracing::warn!(device = "fs", error = &error as &dyn std::error::Error, "file server is gone");
        }
        active.worker.stop();
    }

    fn pause(&mut self) {
        if let Some(active) = &self.active {
            // A server that is gone serves nothing; the worker has latched it.
            let _ = self.session.enable(false);
            active.worker.pause();
        }
    }

    fn resume(&mut self) {
        if let Some(active) = &self.active {
            let _ = self.session.enable(true);
            for kick in &active.kicks {
                // The server may have taken a kick while its queue was off.
                let _ = kick.write(1);
            }
            active.worker.resume();
        }
    }
}

#[cfg(test)]
mod tests;
