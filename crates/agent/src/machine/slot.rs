//! Hot-plug slots: virtio-mmio devices that had no identity at boot.
//!
//! The kernel's driver leaves a device with id 0 alone. Once the VMM has given it an identity, writing its name to
//! the driver's `bind` file makes the driver look again; `unbind` lets go of it before the VMM takes it away.

use std::fs;
use std::io;
use std::path::Path;

use nacre_protocol::vm::MAX_SLOTS;

/// Driver's directory in sysfs.
const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";

/// A slot that cannot be bound or unbound.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Not below [`MAX_SLOTS`].
    #[error("slot {0} is not below {MAX_SLOTS}")]
    Number(u32),
    /// The slot is in the state that was asked for already, or has no device.
    #[error("slot {slot} has no device that can be {verb}")]
    NoDevice {
        /// Its number.
        slot: u32,
        /// "bound" or "unbound".
        verb: &'static str,
    },
    /// The kernel's driver failed.
    #[error("the driver failed on slot {slot}")]
    Driver {
        /// Its number.
        slot: u32,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// Makes the driver take the device in a slot. Returns when the device is usable.
///
/// # Errors
/// [`SlotError`].
pub fn bind(slot: u32) -> Result<(), SlotError> {
    command(Path::new(DRIVER), "bind", slot, "bound")
}

/// Makes the driver let go of the device in a slot. Returns when nothing of the guest uses it.
///
/// # Errors
/// [`SlotError`].
pub fn unbind(slot: u32) -> Result<(), SlotError> {
    command(Path::new(DRIVER), "unbind", slot, "unbound")
}

fn command(driver: &Path, file: &str, slot: u32, verb: &'static str) -> Result<(), SlotError> {
    if usize::try_from(slot).is_ok_and(|slot| slot >= MAX_SLOTS) {
        return Err(SlotError::Number(slot));
    }
    // The kernel numbers the devices of its command line in their order there, as the VMM does its slots.
    match fs::write(driver.join(file), format!("virtio-mmio.{slot}")) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Err(SlotError::NoDevice { slot, verb }),
        Err(source) => Err(SlotError::Driver { slot, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_is_written_by_its_platform_name() {
        let driver = tempfile::tempdir().unwrap();
        command(driver.path(), "bind", 7, "bound").unwrap();
        assert_eq!(fs::read_to_string(driver.path().join("bind")).unwrap(), "virtio-mmio.7");
    }

    #[test]
    fn slot_beyond_the_last_is_refused() {
        assert!(matches!(bind(MAX_SLOTS as u32), Err(SlotError::Number(_))));
    }
}
