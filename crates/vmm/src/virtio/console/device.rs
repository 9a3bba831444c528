//! The device towards the transport.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::worker::ConsoleWorker;
use super::{DEVICE_ID, QUEUE_SIZES};
use crate::jail::seccomp::ThreadKind;
use crate::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::virtio::queue::BASE_FEATURES;
use crate::virtio::worker::{Poller, Worker};

/// A virtio-console device.
pub struct Console {
    pub(super) output: Arc<OwnedFd>,
    dropped_bytes: Arc<AtomicU64>,
    worker: Option<Worker<ConsoleWorker>>,
}

impl Console {
    /// A console that writes to `output` and adds to `dropped_bytes` what that does not take.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking.
    pub fn new(output: OwnedFd, dropped_bytes: Arc<AtomicU64>) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&output, FcntlArg::F_GETFL)?);
        fcntl(&output, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { output: Arc::new(output), dropped_bytes, worker: None })
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        BASE_FEATURES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        // Size and ports are features that are not offered.
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let poller = Poller::new().map_err(ActivateError::Event)?;
        let (output, dropped) = (Arc::clone(&self.output), Arc::clone(&self.dropped_bytes));
        let serve = ConsoleWorker::new(activation, output, dropped, &poller)?;
        self.worker = Some(Worker::spawn(ThreadKind::Console, "console", poller, serve)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }

    fn pause(&mut self) {
        if let Some(worker) = &self.worker {
            worker.pause();
        }
    }

    fn resume(&mut self) {
        if let Some(worker) = &self.worker {
            worker.resume();
        }
    }
}
