//! A running machine: what the control loop acts on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nacre_protocol::control::VmStats;
use nix::time::{ClockId, clock_gettime};

use crate::builder::devices::{self, DeviceError};
use crate::bus::Bus;
use crate::config::{Disk, Net};
use crate::memory::{Memory, MemoryError};
use crate::vcpu::Vcpus;
use crate::virtio::balloon::BalloonHandle;
use crate::virtio::slots::SlotError;

/// A request that the machine could not carry out.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Plugging or unplugging failed.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// A device could not be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no balloon.
    #[error("the machine has no balloon")]
    NoBalloon,
    /// The balloon would be larger than the guest.
    #[error("a balloon of {target_mib} MiB is larger than the guest's {memory_mib} MiB of memory")]
    BalloonTooLarge {
        /// What was asked for.
        target_mib: u32,
        /// What there is.
        memory_mib: u64,
    },
    /// The resident memory is unknown.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The CPU time of a vCPU is unknown.
    #[error("the CPU time of a vCPU could not be read")]
    Clock(#[source] nix::Error),
}

/// Counters that devices and ports share with the machine.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Guest mistakes that devices refused.
    pub device_errors: Arc<AtomicU64>,
    /// Serial text that nobody read.
    pub serial_dropped: Arc<AtomicU64>,
}

/// A machine whose vCPUs run or are paused.
pub struct Machine {
    pub(crate) vcpus: Vcpus,
    pub(crate) bus: Arc<Bus>,
    pub(crate) memory: Memory,
    pub(crate) counters: Counters,
    pub(crate) balloon: Option<BalloonHandle>,
    pub(crate) paused: bool,
}

impl Machine {
    /// Stops the vCPUs, then the devices; both have settled on return.
    pub fn pause(&mut self) {
        if !self.paused {
            self.vcpus.pause();
            self.bus.slots().for_each_device(|device| device.pause());
            self.paused = true;
        }
    }

    /// Lets devices and vCPUs go on.
    pub fn resume(&mut self) {
        if self.paused {
            self.bus.slots().for_each_device(|device| device.resume());
            self.vcpus.resume();
            self.paused = false;
        }
    }

    /// Ends the vCPU threads. The process is about to end too, so nobody waits for them.
    pub fn stop(&self) {
        self.vcpus.stop();
        self.bus.flush_serial();
    }

    /// Plugs a disk and returns its slot.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn plug_disk(&self, disk: Disk) -> Result<u32, MachineError> {
        Ok(self.bus.slots().plug(devices::disk(disk)?)?)
    }

    /// Plugs a network link and returns its slot.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn plug_net(&self, net: Net) -> Result<u32, MachineError> {
        Ok(self.bus.slots().plug(devices::net(net)?)?)
    }

    /// Sets the balloon's target.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn resize_balloon(&self, target_mib: u32) -> Result<(), MachineError> {
        let balloon = self.balloon.as_ref().ok_or(MachineError::NoBalloon)?;
        let memory_mib = self.memory.size().bytes() >> 20;
        if u64::from(target_mib) > memory_mib {
            return Err(MachineError::BalloonTooLarge { target_mib, memory_mib });
        }
        balloon.set_target(target_mib);
        Ok(())
    }

    /// Takes a plugged device away.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn unplug(&self, slot: u32) -> Result<(), MachineError> {
        Ok(self.bus.slots().unplug(slot)?)
    }

    /// Counters of the machine.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn stats(&self) -> Result<VmStats, MachineError> {
        let exits = self.bus.counters();
        Ok(VmStats {
            memory_resident_bytes: self.memory.resident_bytes()?,
            balloon_bytes: self.balloon.as_ref().map_or(0, BalloonHandle::size_bytes),
            reported_free_bytes: self.balloon.as_ref().map_or(0, BalloonHandle::reported_bytes),
            pio_exits: exits.pio.load(Ordering::Relaxed),
            mmio_exits: exits.mmio.load(Ordering::Relaxed),
            device_errors: self.counters.device_errors.load(Ordering::Relaxed),
            serial_dropped_bytes: self.counters.serial_dropped.load(Ordering::Relaxed),
            vcpu_cpu_us: self
                .vcpus
                .thread_ids()
                .iter()
                .map(|tid| cpu_time_us(*tid))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn cpu_time_us(tid: i32) -> Result<u64, MachineError> {
    /// The kernel's encoding of "CPU time of the thread" (CPUCLOCK_PERTHREAD_MASK, CPUCLOCK_SCHED).
    const THREAD_CPU_TIME: i32 = 6;
    let clock = ClockId::from_raw((!tid << 3) | THREAD_CPU_TIME);
    match clock_gettime(clock) {
        Ok(time) => Ok(u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000
            + u64::try_from(time.tv_nsec()).unwrap_or(0) / 1000),
        // The thread is over: the guest is about to be.
        Err(nix::Error::EINVAL | nix::Error::ESRCH) => Ok(0),
        Err(error) => Err(MachineError::Clock(error)),
    }
}
