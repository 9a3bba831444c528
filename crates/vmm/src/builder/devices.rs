//! From checked configuration to devices, in the order of their slots.

use std::io;
use std::sync::Arc;

use crate::config::{self, Devices, Disk};
use crate::machine::Counters;
use crate::virtio::balloon::{Balloon, BalloonHandle};
use crate::virtio::blk::{self, DiskError};
use crate::virtio::console::Console;
use crate::virtio::device::VirtioDevice;
use crate::virtio::fs::{Fs, FsError};
use crate::virtio::net::{Net, NetError};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;

/// A device that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A network link.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The file system.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The vsock device.
    #[error("the vsock listener could not be set up")]
    Vsock(#[source] io::Error),
    /// The console.
    #[error("the console's output could not be set up")]
    Console(#[source] io::Error),
}

/// The devices of boot.
pub struct AtBoot {
    /// In the order of their slots; guests find disks and links in this order.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// How to steer the balloon.
    pub balloon: Option<BalloonHandle>,
}

/// Makes all devices of boot.
///
/// # Errors
/// [`DeviceError`].
pub fn at_boot(config: Devices, counters: &Counters) -> Result<AtBoot, DeviceError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    let vsock = Vsock::new(config.vsock.listener, config.vsock.host_ports).map_err(DeviceError::Vsock)?;
    devices.push(Box::new(vsock));
    if config.rng {
        devices.push(Box::new(Rng::new()));
    }
    let balloon = config.balloon.then(Balloon::new);
    let handle = balloon.as_ref().map(Balloon::handle);
    devices.extend(balloon.map(|balloon| -> Box<dyn VirtioDevice> { Box::new(balloon) }));
    if let Some(output) = config.console {
        let dropped = Arc::clone(&counters.serial_dropped);
        devices.push(Box::new(Console::new(output, dropped).map_err(DeviceError::Console)?));
    }
    for part in config.disks {
        devices.push(disk(part)?);
    }
    for part in config.nets {
        devices.push(net(part)?);
    }
    if let Some(part) = config.fs {
        devices.push(Box::new(Fs::new(&part.tag, part.socket)?));
    }
    Ok(AtBoot { devices, balloon: handle })
}

/// A disk.
///
/// # Errors
/// [`DeviceError`].
pub fn disk(config: Disk) -> Result<Box<dyn VirtioDevice>, DeviceError> {
    let disk = blk::Disk::new(&config.id, config.extents, config.read_only)?;
    Ok(Box::new(blk::Blk::new(disk)))
}

/// A network link.
///
/// # Errors
/// [`DeviceError`].
pub fn net(config: config::Net) -> Result<Box<dyn VirtioDevice>, DeviceError> {
    Ok(Box::new(Net::new(config.tap, config.mac, config.mtu)?))
}
