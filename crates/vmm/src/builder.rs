//! Boot as one story: memory, kernel, devices, vCPUs, jail, run.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use kvm_ioctls::VcpuFd;
use nacre_protocol::control::StartTimings;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::x86_64::boot_params::{self, BootParamsError};
use crate::arch::x86_64::cmdline::{CommandLine, CommandLineTooLong};
use crate::arch::x86_64::cpuid::{self, CpuIdError};
use crate::arch::x86_64::layout;
use crate::arch::x86_64::loader::{self, Kernel, LoadError};
use crate::arch::x86_64::mptable::{self, MpTableError};
use crate::arch::x86_64::regs::{self, RegsError};
use crate::bus::Bus;
use crate::config::Config;
use crate::jail::seccomp::{self, SeccompError, ThreadKind};
use crate::jail::{self, JailError};
use crate::kvm::{KvmError, Vm};
use crate::machine::{Counters, Machine};
use crate::memory::{Memory, MemoryError, Sharing};
use crate::serial::SerialPort;
use crate::sys::MappedFile;
use crate::vcpu::{ExitReporter, VcpuError, Vcpus};
use crate::virtio::slots::{SlotError, Slots};
use crate::virtio::thread::DeviceThread;

pub mod devices;

/// Largest initramfs.
const MAX_INITRAMFS_BYTES: u64 = 1 << 30;

/// A machine that could not be started; the step is the variant.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The back-end has fewer vCPUs.
    #[error("KVM runs at most {max} vCPUs in one machine, not {asked}")]
    TooManyVcpus {
        /// What was asked for.
        asked: u8,
        /// What there is.
        max: usize,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel or initramfs.
    #[error(transparent)]
    Kernel(#[from] LoadError),
    /// Command line.
    #[error(transparent)]
    CommandLine(#[from] CommandLineTooLong),
    /// Boot information.
    #[error(transparent)]
    BootParams(#[from] BootParamsError),
    /// Multiprocessor table.
    #[error(transparent)]
    MpTable(#[from] MpTableError),
    /// CPUID.
    #[error(transparent)]
    CpuId(#[from] CpuIdError),
    /// First state of a vCPU.
    #[error("vCPU {0} could not be set up")]
    Regs(u8, #[source] RegsError),
    /// Serial pipe.
    #[error("the serial pipe could not be set up")]
    Serial(#[source] nix::Error),
    /// An event descriptor.
    #[error("an event descriptor could not be made")]
    Event(#[source] io::Error),
    /// Slots.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// A device.
    #[error(transparent)]
    Device(#[from] devices::DeviceError),
    /// The jail.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The control thread's system calls.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The device thread.
    #[error("the device thread could not be started")]
    Thread(#[source] io::Error),
    /// vCPU threads.
    #[error(transparent)]
    Vcpus(#[from] VcpuError),
}

/// Builds the machine, jails the process and starts the vCPU threads, which wait for [`Machine::resume`]. The
/// calling thread is restricted to what the control loop needs afterwards.
///
/// # Errors
/// [`BuildError`]; the process then has nothing left to do.
pub fn start(
    config: Config,
    begin: Instant,
    exits: &ExitReporter,
) -> Result<(Machine, StartTimings), BuildError> {
    let mut timings = StartTimings { config_us: micros(begin), ..Default::default() };
    let Config { vcpus, memory, kvm, kernel, initramfs, kernel_log, serial, devices, hotplug_slots, jail } =
        config;

    let vm = Vm::new(kvm)?;
    if usize::from(vcpus) > vm.max_vcpus() {
        return Err(BuildError::TooManyVcpus { asked: vcpus, max: vm.max_vcpus() });
    }
    let sharing = if devices.fs.is_some() { Sharing::File } else { Sharing::Private };
    let memory = Memory::new(memory, sharing)?;
    let (kernel, initramfs) = load(&memory, kernel, initramfs)?;
    vm.set_memory(memory.map())?;
    timings.loaded_us = micros(begin);

    let counters = Counters::default();
    let serial = serial_port(&vm, serial, &counters)?;
    let (device_thread, jobs) = DeviceThread::new();
    let at_boot = devices::at_boot(devices, &counters)?;
    let slots = Slots::new(
        &vm,
        memory.map(),
        &device_thread,
        &counters.device_errors,
        at_boot.devices,
        hotplug_slots,
    )?;
    let fds = create_vcpus(&vm, vcpus, kernel)?;
    let tsc_khz = fds.first().and_then(|fd| fd.get_tsc_khz().ok());
    let command_line = CommandLine { log: kernel_log, slots: slots.count(), vcpus, tsc_khz }.text()?;
    boot_params::write(memory.map(), memory.size(), &command_line, initramfs)?;
    mptable::write(memory.map(), vcpus)?;
    let bus = Arc::new(Bus::new(serial, slots));
    timings.built_us = micros(begin);

    jail::shut(jail.as_ref())?;
    timings.jailed_us = micros(begin);

    jobs.start().map_err(BuildError::Thread)?;
    let vcpus = Vcpus::start_paused(fds, &bus, exits)?;
    seccomp::install(ThreadKind::Control)?;
    timings.running_us = micros(begin);
    Ok((Machine { vcpus, bus, memory, counters, balloon: at_boot.balloon, paused: true }, timings))
}

fn micros(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn load(
    memory: &Memory,
    kernel: OwnedFd,
    initramfs: OwnedFd,
) -> Result<(Kernel, boot_params::Initramfs), LoadError> {
    let kernel = loader::load_kernel(memory, &File::from(kernel))?;
    let image =
        MappedFile::new(&File::from(initramfs), MAX_INITRAMFS_BYTES).map_err(LoadError::ReadInitramfs)?;
    let initramfs = loader::load_initramfs(memory, kernel, image.bytes())?;
    Ok((kernel, initramfs))
}

fn serial_port(vm: &Vm, pipe: OwnedFd, counters: &Counters) -> Result<SerialPort, BuildError> {
    let flags = fcntl(&pipe, FcntlArg::F_GETFL).map_err(BuildError::Serial)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(&pipe, FcntlArg::F_SETFL(flags)).map_err(BuildError::Serial)?;
    let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(BuildError::Event)?;
    vm.connect_line(&line, layout::SERIAL_LINE)?;
    Ok(SerialPort::new(line, File::from(pipe), Arc::clone(&counters.serial_dropped)))
}

fn create_vcpus(vm: &Vm, count: u8, kernel: Kernel) -> Result<Vec<VcpuFd>, BuildError> {
    let supported = vm.supported_cpuid()?;
    let machine = cpuid::Machine { vcpus: count, tsc_deadline: vm.has_tsc_deadline_timer() };
    let mut vcpus = Vec::with_capacity(usize::from(count));
    for id in 0..count {
        let vcpu = vm.create_vcpu(id)?;
        let list = cpuid::for_vcpu(&supported, machine, id)?;
        vcpu.set_cpuid2(&list).map_err(|source| KvmError::Refused("set CPUID", source))?;
        regs::set_common(&vcpu).map_err(|source| BuildError::Regs(id, source))?;
        if id == 0 {
            regs::set_entry(&vcpu, kernel.entry).map_err(|source| BuildError::Regs(id, source))?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}
