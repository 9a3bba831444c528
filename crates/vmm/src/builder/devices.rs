//! From checked configuration to devices, in the order of their slots.

use crate::config::{Devices, Disk};
use crate::virtio::blk::{self, DiskError};
use crate::virtio::device::VirtioDevice;
use crate::virtio::rng::Rng;

/// A device that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// All devices of boot. Guests find disks and links in this order.
///
/// # Errors
/// [`DeviceError`].
pub fn at_boot(config: Devices) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    if config.rng {
        devices.push(Box::new(Rng::new()));
    }
    for part in config.disks {
        devices.push(disk(part)?);
    }
    Ok(devices)
}

/// A disk.
///
/// # Errors
/// [`DeviceError`].
pub fn disk(config: Disk) -> Result<Box<dyn VirtioDevice>, DeviceError> {
    let disk = blk::Disk::new(&config.id, config.extents, config.read_only)?;
    Ok(Box::new(blk::Blk::new(disk)))
}
