//! The device towards the transport.

use super::worker::RngWorker;
use super::{DEVICE_ID, QUEUE_SIZE};
use crate::jail::seccomp::ThreadKind;
use crate::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::virtio::queue::BASE_FEATURES;
use crate::virtio::worker::{Poller, Worker};

/// A virtio-rng device.
#[derive(Default)]
pub struct Rng {
    worker: Option<Worker<RngWorker>>,
}

impl Rng {
    /// A device that waits for its driver.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        BASE_FEATURES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let poller = Poller::new().map_err(ActivateError::Event)?;
        let serve = RngWorker::new(activation, &poller)?;
        self.worker = Some(Worker::spawn(ThreadKind::Rng, "rng", poller, serve)?);
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
