//! The device towards the transport.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use nacre_protocol::ports::GUEST_CID;

use super::muxer::Host;
use super::worker::VsockWorker;
use super::{DEVICE_ID, QUEUE_SIZES};
use crate::jail::seccomp::ThreadKind;
use crate::virtio::config;
use crate::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::virtio::queue::BASE_FEATURES;
use crate::virtio::worker::{Poller, Worker};

/// VIRTIO_VSOCK_F_STREAM.
const F_STREAM: u64 = 1 << 0;

/// A virtio-vsock device.
pub struct Vsock {
    state: State,
}

enum State {
    /// No driver: clients wait in the listener's backlog.
    Idle(Host),
    Active(Worker<VsockWorker>),
    /// The thread died with the host's side.
    Gone,
}

impl Vsock {
    /// A device with a listening Unix stream socket for host clients, and a connected one for each host port that the
    /// guest may ask for, once.
    ///
    /// # Errors
    /// The listener cannot be made non-blocking.
    pub fn new(listener: OwnedFd, host_ports: impl IntoIterator<Item = (u32, OwnedFd)>) -> io::Result<Self> {
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let ports: HashMap<u32, UnixStream> =
            host_ports.into_iter().map(|(port, socket)| (port, UnixStream::from(socket))).collect();
        Ok(Self { state: State::Idle(Host { listener, ports }) })
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        BASE_FEATURES | F_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(&u64::from(GUEST_CID).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let State::Idle(host) = std::mem::replace(&mut self.state, State::Gone) else {
            return Err(ActivateError::Backend(io::ErrorKind::NotFound.into()));
        };
        let poller = Poller::new().map_err(ActivateError::Event)?;
        match VsockWorker::new(host, activation, &poller) {
            Ok(serve) => {
                self.state = State::Active(Worker::spawn(ThreadKind::Vsock, "vsock", poller, serve)?);
                Ok(())
            }
            Err((host, error)) => {
                self.state = State::Idle(host);
                Err(error)
            }
        }
    }

    fn reset(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Gone) {
            State::Active(worker) => {
                worker.stop().map_or(State::Gone, |serve| State::Idle(serve.into_host()))
            }
            other => other,
        };
    }

    fn pause(&mut self) {
        if let State::Active(worker) = &self.state {
            worker.pause();
        }
    }

    fn resume(&mut self) {
        if let State::Active(worker) = &self.state {
            worker.resume();
        }
    }
}
