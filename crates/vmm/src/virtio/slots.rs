//! The table of slots: wiring to KVM, hot-plug, and the one place where an MMIO address finds its slot.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_protocol::vm::MAX_SLOTS;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Interrupt, VirtioDevice};
use super::mmio::{QUEUE_NOTIFY, Slot};
use super::thread::DeviceThread;
use crate::arch::x86_64::layout;
use crate::kvm::{KvmError, Vm};

/// A slot that could not be made, filled or emptied.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// More than [`MAX_SLOTS`].
    #[error("{0} device slots are more than {MAX_SLOTS}")]
    TooMany(usize),
    /// An event descriptor could not be made.
    #[error("an event descriptor could not be made")]
    Event(#[source] io::Error),
    /// KVM refused the wiring.
    #[error("slot {0} could not be wired")]
    Wire(usize, #[source] KvmError),
    /// No placeholder is free.
    #[error("no free hot-plug slot is left")]
    NoneFree,
    /// The device's queues have sizes that no driver can use.
    #[error("the device does not fit a slot")]
    Unfit,
    /// No plugged device is there.
    #[error("slot {0} has no hot-plugged device")]
    NotPlugged(u32),
}

/// All slots of a machine.
pub struct Slots {
    vm: Vm,
    slots: Vec<Mutex<Slot>>,
    /// Slots from here on are for hot-plug.
    first_placeholder: usize,
}

impl Slots {
    /// Wires the boot devices, in this order, and `placeholders` empty slots behind them.
    ///
    /// # Errors
    /// [`SlotError`].
    pub fn new(
        vm: &Vm,
        memory: &GuestMemoryMmap,
        thread: &DeviceThread,
        errors: &Arc<AtomicU64>,
        devices: Vec<Box<dyn VirtioDevice>>,
        placeholders: usize,
    ) -> Result<Self, SlotError> {
        let first_placeholder = devices.len();
        let count = first_placeholder + placeholders;
        if count > MAX_SLOTS {
            return Err(SlotError::TooMany(count));
        }
        let mut slots = Self { vm: vm.clone(), slots: Vec::with_capacity(count), first_placeholder };
        for index in 0..count {
            let line = event_fd()?;
            vm.connect_line(&line, layout::slot_line(index))
                .map_err(|error| SlotError::Wire(index, error))?;
            let interrupt = Interrupt::new(line, Arc::clone(errors));
            slots.slots.push(Mutex::new(Slot::new(memory.clone(), interrupt, thread.clone())));
        }
        for (index, device) in devices.into_iter().enumerate() {
            slots.plug_into(index, device)?;
        }
        Ok(slots)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// Gives a free placeholder the device, and returns the slot's number.
    ///
    /// # Errors
    /// [`SlotError`]; the device is then gone.
    pub fn plug(&self, device: Box<dyn VirtioDevice>) -> Result<u32, SlotError> {
        let free = (self.first_placeholder..self.slots.len())
            .find(|index| self.lock(*index).is_some_and(|slot| slot.is_empty()))
            .ok_or(SlotError::NoneFree)?;
        self.plug_into(free, device)?;
        // At most MAX_SLOTS.
        Ok(free as u32)
    }

    /// Takes a hot-plugged device away.
    ///
    /// # Errors
    /// [`SlotError::NotPlugged`].
    pub fn unplug(&self, slot: u32) -> Result<(), SlotError> {
        let index = slot as usize;
        if index < self.first_placeholder {
            return Err(SlotError::NotPlugged(slot));
        }
        let kicks = self.lock(index).and_then(|mut slot| slot.unplug()).ok_or(SlotError::NotPlugged(slot))?;
        self.disconnect(index, &kicks);
        Ok(())
    }

    /// Runs `act` on each device.
    pub fn for_each_device(&self, mut act: impl FnMut(&mut dyn VirtioDevice)) {
        for index in 0..self.slots.len() {
            if let Some(mut slot) = self.lock(index) {
                slot.with_device(&mut act);
            }
        }
    }

    /// The guest reads at an address of the window; false: no slot is there.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address) {
            Some((mut slot, offset)) => {
                slot.read(offset, data);
                true
            }
            None => false,
        }
    }

    /// The guest writes at an address of the window; false: no slot is there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address) {
            Some((mut slot, offset)) => {
                slot.write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, address: u64) -> Option<(MutexGuard<'_, Slot>, u64)> {
        let offset = address.checked_sub(layout::SLOTS_BASE)?;
        let slot = self.lock(usize::try_from(offset / layout::SLOT_BYTES).ok()?)?;
        Some((slot, offset % layout::SLOT_BYTES))
    }

    fn lock(&self, index: usize) -> Option<MutexGuard<'_, Slot>> {
        // A panic in a device ends the process where it is shipped; in tests the slot's state is still whole.
        self.slots.get(index).map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn plug_into(&self, index: usize, device: Box<dyn VirtioDevice>) -> Result<(), SlotError> {
        let mut kicks = Vec::with_capacity(device.queue_sizes().len());
        for queue in 0..device.queue_sizes().len() as u32 {
            let kick = event_fd()?;
            if let Err(error) = self.vm.connect_notify(&kick, notify_address(index), queue) {
                self.disconnect(index, &kicks);
                return Err(SlotError::Wire(index, error));
            }
            kicks.push(kick);
        }
        let mut slot = self.lock(index).ok_or(SlotError::Unfit)?;
        slot.plug(device, kicks).map_err(|_| SlotError::Unfit)
    }

    fn disconnect(&self, index: usize, kicks: &[EventFd]) {
        for (queue, kick) in (0u32..).zip(kicks) {
            if let Err(error) = self.vm.disconnect_notify(kick, notify_address(index), queue) {
                tracing::warn!(
                    slot = index,
                    queue,
                    error = &error as &dyn std::error::Error,
                    "not disconnected"
                );
            }
        }
    }
}

fn notify_address(index: usize) -> u64 {
    layout::slot_address(index) + QUEUE_NOTIFY
}

fn event_fd() -> Result<EventFd, SlotError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(SlotError::Event)
}
