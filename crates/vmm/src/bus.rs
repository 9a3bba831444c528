//! What stands behind the addresses and ports that a guest's access leaves the guest for.
//!
//! Nobody home: reads are all ones, writes are lost, and both are only counted (S35).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::serial::{self, SerialPort};
use crate::virtio::slots::Slots;

/// Keyboard controller, of which only the reset line is there.
const I8042_DATA: u16 = 0x60;
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

/// What an access asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing more.
    None,
    /// A restart.
    Reset,
}

/// Accesses since the start.
#[derive(Debug, Default)]
pub struct ExitCounters {
    /// Port I/O.
    pub pio: AtomicU64,
    /// Memory-mapped I/O.
    pub mmio: AtomicU64,
}

/// Ports and MMIO of one machine.
pub struct Bus {
    serial: Mutex<SerialPort>,
    slots: Slots,
    counters: ExitCounters,
}

impl Bus {
    /// A bus with these on it.
    pub fn new(serial: SerialPort, slots: Slots) -> Self {
        Self { serial: Mutex::new(serial), slots, counters: ExitCounters::default() }
    }

    /// The device slots.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Accesses since the start.
    pub fn counters(&self) -> &ExitCounters {
        &self.counters
    }

    /// Sends serial text that has no line end yet.
    pub fn flush_serial(&self) {
        self.serial().flush();
    }

    /// `in`
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        self.counters.pio.fetch_add(1, Ordering::Relaxed);
        match (port, data) {
            (serial::FIRST_PORT..=serial::LAST_PORT, [byte]) => {
                *byte = self.serial().read((port - serial::FIRST_PORT) as u8);
            }
            // No byte waits, none is being taken in: what a kernel wants to see before it pulls the reset line.
            (I8042_DATA | I8042_COMMAND, data) => data.fill(0),
            (_, data) => data.fill(0xff),
        }
    }

    /// `out`
    pub fn port_write(&self, port: u16, data: &[u8]) -> Effect {
        self.counters.pio.fetch_add(1, Ordering::Relaxed);
        match (port, data) {
            (serial::FIRST_PORT..=serial::LAST_PORT, [byte]) => {
                self.serial().write((port - serial::FIRST_PORT) as u8, *byte);
                Effect::None
            }
            (I8042_COMMAND, [I8042_RESET]) => Effect::Reset,
            _ => Effect::None,
        }
    }

    /// A load that no memory slot has.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.counters.mmio.fetch_add(1, Ordering::Relaxed);
        if !self.slots.read(address, data) {
            data.fill(0xff);
        }
    }

    /// A store that no memory slot has.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        self.counters.mmio.fetch_add(1, Ordering::Relaxed);
        self.slots.write(address, data);
    }

    fn serial(&self) -> MutexGuard<'_, SerialPort> {
        // A panic ends the process where it is shipped; the port's registers are plain bytes, whole at any time.
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
