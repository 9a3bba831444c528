//! The device towards the transport.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::disk::Disk;
use super::worker::BlkWorker;
use super::{
    CONFIG_LEN, DEVICE_ID, MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, MAX_ZERO_SECTORS, MAX_ZERO_SEGMENTS,
    QUEUE_SIZE, SECTOR, SEG_MAX,
};
use crate::jail::seccomp::ThreadKind;
use crate::virtio::config::{put, read};
use crate::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::virtio::queue::BASE_FEATURES;
use crate::virtio::worker::{Poller, Worker};

/// A virtio-blk device.
pub struct Blk {
    config: [u8; CONFIG_LEN],
    features: u64,
    state: State,
}

enum State {
    /// No driver; the disk waits for one.
    Idle(Disk),
    Active(Worker<BlkWorker>),
    /// The thread died with the disk.
    Gone,
}

impl Blk {
    /// A device that waits for its driver.
    pub fn new(disk: Disk) -> Self {
        let limits = disk.limits();
        let mut features = BASE_FEATURES | 1 << VIRTIO_BLK_F_SEG_MAX;
        features |= if limits.read_only {
            1 << VIRTIO_BLK_F_RO
        } else {
            1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        Self { config: config(limits.capacity / SECTOR), features, state: State::Idle(disk) }
    }
}

/// The configuration space (virtio 1.2, section 5.2.4).
fn config(sectors: u64) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    put(&mut config, 0, &sectors.to_le_bytes());
    put(&mut config, 12, &SEG_MAX.to_le_bytes());
    put(&mut config, 36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(&mut config, 40, &MAX_DISCARD_SEGMENTS.to_le_bytes());
    // Discards of less than a page free nothing.
    put(&mut config, 44, &8u32.to_le_bytes());
    put(&mut config, 48, &MAX_ZERO_SECTORS.to_le_bytes());
    put(&mut config, 52, &MAX_ZERO_SEGMENTS.to_le_bytes());
    put(&mut config, 56, &[1]);
    config
}

impl VirtioDevice for Blk {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let State::Idle(disk) = std::mem::replace(&mut self.state, State::Gone) else {
            return Err(ActivateError::Backend(std::io::ErrorKind::NotFound.into()));
        };
        let poller = Poller::new().map_err(ActivateError::Event)?;
        match BlkWorker::new(disk, activation, &poller) {
            Ok(serve) => {
                self.state = State::Active(Worker::spawn(ThreadKind::Block, "blk", poller, serve)?);
                Ok(())
            }
            Err((disk, error)) => {
                self.state = State::Idle(disk);
                Err(error)
            }
        }
    }

    fn reset(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Gone) {
            State::Active(worker) => {
                worker.stop().map_or(State::Gone, |serve| State::Idle(serve.into_disk()))
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
