//! The MMIO transport (virtio 1.2, section 4.2): one [`Slot`] for each window of registers.
//!
//! A slot without a device answers as the placeholder of section 4.2.3.1 (device id 0), which drivers leave alone; to plug a device is to
//! give the slot an identity. Whatever a driver writes at a wrong time, of a wrong width or at a wrong place is ignored, and what
//! it reads there is 0.
//!
//! ```text
//!            ACKNOWLEDGE, DRIVER      FEATURES_OK              DRIVER_OK
//!   reset  --------------------> features --------> queues --------------> live
//!     ^                            only here          only here             | queues frozen, device active
//!     +--------------------------------- status = 0 -----------------------+
//! ```
//!
//! A device is activated and reset on the device thread; see [`DeviceThread`].

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Activation, ActiveQueue, Interrupt, VirtioDevice};
use super::thread::DeviceThread;

mod queues;
mod registers;
mod status;

use queues::QueueSetup;
pub use registers::QUEUE_NOTIFY;
use registers::{CONFIG_SPACE, Register, Select};
use status::Status;

/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;

/// Feature bits that are the transport's (24 to 41) and that it has: indirect descriptors, event index, version 1.
/// The others would need work of the transport (packed ring, notification data, queue reset) and are never offered.
const TRANSPORT_FEATURES: u64 = 1 << 28 | 1 << 29 | VERSION_1;
const TRANSPORT_BITS: u64 = ((1 << 42) - 1) & !((1 << 24) - 1);

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"NACR");

/// What plugs into a slot.
struct Plugged {
    /// None while the device thread has it, or after that thread was lost.
    device: Option<Box<dyn VirtioDevice>>,
    id: u32,
    features: u64,
    queues: Vec<QueueSetup>,
    /// One for each queue; KVM signals them.
    kicks: Vec<EventFd>,
    active: bool,
}

/// One window of registers, with a device behind it or none.
pub struct Slot {
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    thread: DeviceThread,
    plugged: Option<Plugged>,
    status: Status,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
}

impl Slot {
    /// An empty slot.
    pub fn new(memory: GuestMemoryMmap, interrupt: Interrupt, thread: DeviceThread) -> Self {
        Self {
            memory,
            interrupt,
            thread,
            plugged: None,
            status: Status::default(),
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
        }
    }

    /// Whether no device is in it.
    pub fn is_empty(&self) -> bool {
        self.plugged.is_none()
    }

    /// Gives the slot a device; `kicks` has one event descriptor for each of its queues.
    ///
    /// Returns the device where the slot has one already or the queues are not fit for a driver.
    pub fn plug(
        &mut self,
        device: Box<dyn VirtioDevice>,
        kicks: Vec<EventFd>,
    ) -> Result<(), Box<dyn VirtioDevice>> {
        let queues: Option<Vec<_>> = device.queue_sizes().iter().map(|max| QueueSetup::new(*max)).collect();
        match queues {
            Some(queues) if self.plugged.is_none() && queues.len() == kicks.len() => {
                let features = device.features() & (!TRANSPORT_BITS | TRANSPORT_FEATURES) | VERSION_1;
                let id = device.device_id();
                self.forget_driver();
                self.plugged =
                    Some(Plugged { device: Some(device), id, features, queues, kicks, active: false });
                Ok(())
            }
            _ => Err(device),
        }
    }

    /// Resets the device and takes it out; the slot is a placeholder again. Returns the event descriptors.
    pub fn unplug(&mut self) -> Option<Vec<EventFd>> {
        self.reset();
        let plugged = self.plugged.take()?;
        // A device drops on the thread that may join its workers.
        if let Some(device) = plugged.device {
            self.thread.run(move || drop(device));
        }
        Some(plugged.kicks)
    }

    /// Runs `act` on the device, if there is one.
    pub fn with_device(&mut self, act: impl FnOnce(&mut dyn VirtioDevice)) {
        if let Some(device) = self.plugged.as_mut().and_then(|plugged| plugged.device.as_mut()) {
            act(device.as_mut());
        }
    }

    /// The driver reads `data.len()` bytes at `offset`.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(config) = offset.checked_sub(CONFIG_SPACE) {
            self.with_device(|device| device.read_config(config, data));
            return;
        }
        // Registers are 32 bits wide and aligned (section 4.2.2.2); anything else reads as zero.
        if let (Some(register), Ok(out)) = (Register::at(offset), <&mut [u8; 4]>::try_from(data)) {
            *out = self.register(register).to_le_bytes();
        }
    }

    /// The driver writes `data` at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(config) = offset.checked_sub(CONFIG_SPACE) {
            self.with_device(|device| device.write_config(config, data));
            return;
        }
        if let (Some(register), Ok(bytes)) = (Register::at(offset), <[u8; 4]>::try_from(data)) {
            self.set_register(register, u32::from_le_bytes(bytes));
        }
    }

    fn register(&self, register: Register) -> u32 {
        match register {
            Register::Magic => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => self.plugged.as_ref().map_or(0, |plugged| plugged.id),
            Register::VendorId => VENDOR,
            Register::DeviceFeatures => {
                let features = self.plugged.as_ref().map_or(0, |plugged| plugged.features);
                half(features, self.device_features_select)
            }
            Register::QueueSizeMax => self.queue().map_or(0, |queue| u32::from(queue.max_size())),
            Register::QueueReady => self.queue().map_or(0, |queue| u32::from(queue.is_ready())),
            Register::InterruptStatus => self.interrupt.pending(),
            Register::Status => self.status.bits(self.interrupt.wants_reset()),
            Register::ConfigGeneration => self.interrupt.config_generation(),
            // No shared memory regions: length and base read as all ones (section 4.2.2).
            Register::SharedMemory => u32::MAX,
            _ => 0,
        }
    }

    fn set_register(&mut self, register: Register, value: u32) {
        if self.plugged.is_none() {
            return;
        }
        match register {
            Register::DeviceFeaturesSelect => self.device_features_select = value,
            Register::DriverFeaturesSelect => self.driver_features_select = value,
            Register::DriverFeatures => self.set_driver_features(value),
            Register::QueueSelect => self.queue_select = value,
            Register::QueueSize => self.set_up_queue(|queue| queue.set_size(value)),
            Register::QueueAddress(area, Select::Low) => {
                self.set_up_queue(|queue| queue.set_low(area, value));
            }
            Register::QueueAddress(area, Select::High) => {
                self.set_up_queue(|queue| queue.set_high(area, value));
            }
            Register::QueueReady => self.set_queue_ready(value),
            Register::QueueNotify => self.notify(value),
            Register::InterruptAck => self.interrupt.acknowledge(value),
            Register::Status => self.set_status(value),
            _ => {}
        }
    }

    fn queue(&self) -> Option<&QueueSetup> {
        let index = usize::try_from(self.queue_select).ok()?;
        self.plugged.as_ref()?.queues.get(index)
    }

    /// Changes the selected queue, in the one phase in which queues may change (V04, S10).
    fn set_up_queue(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        if !self.status.may_set_up_queues() {
            return;
        }
        let index = self.queue_select as usize;
        if let Some(queue) = self.plugged.as_mut().and_then(|plugged| plugged.queues.get_mut(index)) {
            change(queue);
        }
    }

    fn set_queue_ready(&mut self, value: u32) {
        let memory = self.memory.clone();
        let interrupt = self.interrupt.clone();
        self.set_up_queue(|queue| match value {
            0 => queue.set_not_ready(),
            1 if queue.set_ready(&memory) => {}
            _ => interrupt.count_error(),
        });
    }

    fn set_driver_features(&mut self, value: u32) {
        if !self.status.may_set_features() {
            return;
        }
        let shift = match self.driver_features_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.driver_features &= !(u64::from(u32::MAX) << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    /// A notification that KVM did not take: only in tests, where no KVM is.
    fn notify(&mut self, index: u32) {
        if let Some(plugged) = self.plugged.as_ref().filter(|plugged| plugged.active)
            && let Some(kick) = plugged.kicks.get(index as usize)
        {
            // A full counter is a kick that is pending already.
            let _ = kick.write(1);
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let offered = self.plugged.as_ref().map_or(0, |plugged| plugged.features);
        let agreed = self.driver_features & !offered == 0 && self.driver_features & VERSION_1 != 0;
        match self.status.advance(value, agreed) {
            Ok(true) => self.activate(),
            Ok(false) => {}
            Err(status::Refused) => self.interrupt.count_error(),
        }
    }

    /// DRIVER_OK: hands the queues to the device.
    fn activate(&mut self) {
        let Some(plugged) = self.plugged.as_mut() else { return };
        let Some(queues) = ready_queues(&plugged.queues, &self.memory) else {
            self.interrupt.needs_reset();
            return;
        };
        let Some(mut device) = plugged.device.take() else { return };
        let kicks = std::mem::take(&mut plugged.kicks);
        let (memory, features) = (self.memory.clone(), self.driver_features);
        let interrupt = self.interrupt.clone();
        plugged.active = true;
        let done = self.thread.run(move || {
            let outcome = active_queues(queues, &kicks)
                .and_then(|queues| device.activate(Activation { memory, features, queues, interrupt }));
            (device, kicks, outcome)
        });
        let Some((device, kicks, outcome)) = done else {
            self.interrupt.needs_reset();
            return;
        };
        plugged.device = Some(device);
        plugged.kicks = kicks;
        if let Err(error) = outcome {
            tracing::warn!(device = plugged.id, error = &error as &dyn std::error::Error, "not activated");
            self.interrupt.needs_reset();
        }
    }

    fn reset(&mut self) {
        if let Some(plugged) = self.plugged.as_mut()
            && plugged.active
        {
            if let Some(mut device) = plugged.device.take() {
                plugged.device = self.thread.run(move || {
                    device.reset();
                    device
                });
            }
            plugged.active = false;
        }
        self.forget_driver();
    }

    fn forget_driver(&mut self) {
        if let Some(plugged) = self.plugged.as_mut() {
            plugged.queues.iter_mut().for_each(QueueSetup::reset);
        }
        self.status = Status::default();
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.interrupt.reset();
    }
}

/// The low or high word of the feature bits.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// The queues that are ready; none where one has left guest memory or their areas overlap (S08).
fn ready_queues(queues: &[QueueSetup], memory: &GuestMemoryMmap) -> Option<Vec<Option<Queue>>> {
    if queues::overlap(queues) {
        return None;
    }
    queues
        .iter()
        .map(|setup| match setup.is_ready() {
            true => setup.queue().filter(|queue| queue.is_valid(memory)).map(Some),
            false => Some(None),
        })
        .collect()
}

fn active_queues(
    queues: Vec<Option<Queue>>,
    kicks: &[EventFd],
) -> Result<Vec<Option<ActiveQueue>>, ActivateError> {
    queues
        .into_iter()
        .zip(kicks)
        .map(|(queue, kick)| {
            let Some(queue) = queue else { return Ok(None) };
            // A kick from before the activation says nothing: the device looks at its queues first.
            let _ = kick.read();
            let kick = kick.try_clone().map_err(ActivateError::Event)?;
            Ok(Some(ActiveQueue { queue, kick }))
        })
        .collect()
}

#[cfg(test)]
mod tests;
