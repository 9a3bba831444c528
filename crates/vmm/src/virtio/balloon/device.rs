//! The device towards the transport, and the handle for its owner.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::worker::BalloonWorker;
use super::{DEVICE_ID, F_DEFLATE_ON_OOM, F_REPORTING, PAGE, QUEUE_SIZES};
use crate::jail::seccomp::ThreadKind;
use crate::virtio::config::{put, read};
use crate::virtio::device::{ActivateError, Activation, Interrupt, VirtioDevice};
use crate::virtio::queue::BASE_FEATURES;
use crate::virtio::worker::{Poller, Worker};

/// `num_pages` and `actual` (virtio 1.2, section 5.5.4).
const CONFIG_LEN: usize = 8;
const ACTUAL: u64 = 4;

const PAGES_PER_MIB: u32 = (1024 * 1024 / PAGE) as u32;

/// A virtio-balloon device.
pub struct Balloon {
    shared: Arc<Shared>,
    worker: Option<Worker<BalloonWorker>>,
}

/// Steers a balloon and reads its counters, from any thread.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

#[derive(Default)]
pub(super) struct Shared {
    target_pages: AtomicU32,
    /// As the guest says.
    actual_pages: AtomicU32,
    pub(super) reported_bytes: AtomicU64,
    /// Of the active driver.
    interrupt: Mutex<Option<Interrupt>>,
}

impl Shared {
    fn interrupt(&self) -> MutexGuard<'_, Option<Interrupt>> {
        // One assignment: valid at any time.
        self.interrupt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Balloon {
    /// An empty balloon that waits for its driver.
    pub fn new() -> Self {
        Self { shared: Arc::default(), worker: None }
    }

    /// A handle that works as long as the process.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.shared))
    }
}

impl Default for Balloon {
    fn default() -> Self {
        Self::new()
    }
}

impl BalloonHandle {
    /// Asks the guest to make the balloon this large. A driver that comes later sees it too.
    pub fn set_target(&self, target_mib: u32) {
        self.0.target_pages.store(target_mib.saturating_mul(PAGES_PER_MIB), Ordering::Release);
        if let Some(interrupt) = &*self.0.interrupt() {
            interrupt.config_changed();
        }
    }

    /// Size of the balloon as the guest tells it.
    pub fn size_bytes(&self) -> u64 {
        u64::from(self.0.actual_pages.load(Ordering::Acquire)) * PAGE
    }

    /// Bytes that came back through free page reporting.
    pub fn reported_bytes(&self) -> u64 {
        self.0.reported_bytes.load(Ordering::Relaxed)
    }
}

impl VirtioDevice for Balloon {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        BASE_FEATURES | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_LEN];
        put(&mut config, 0, &self.shared.target_pages.load(Ordering::Acquire).to_le_bytes());
        put(&mut config, 4, &self.shared.actual_pages.load(Ordering::Acquire).to_le_bytes());
        read(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(bytes)) = (offset, data.try_into()) {
            self.shared.actual_pages.store(u32::from_le_bytes(bytes), Ordering::Release);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let poller = Poller::new().map_err(ActivateError::Event)?;
        let interrupt = activation.interrupt.clone();
        let serve = BalloonWorker::new(activation, Arc::clone(&self.shared), &poller)?;
        self.worker = Some(Worker::spawn(ThreadKind::Balloon, "balloon", poller, serve)?);
        *self.shared.interrupt() = Some(interrupt);
        Ok(())
    }

    fn reset(&mut self) {
        *self.shared.interrupt() = None;
        self.shared.actual_pages.store(0, Ordering::Release);
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
