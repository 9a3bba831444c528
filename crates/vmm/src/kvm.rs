//! The virtual machine as KVM sees it: chips, memory slots, event descriptors.
//!
//! This is one of the two modules outside `sys` that may be unsafe.

#![expect(unsafe_code, reason = "KVM's interface takes raw descriptors and addresses")]

use std::cell::Cell;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_run, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::layout;
use crate::sys;

const MISC_MAJOR: u32 = 10;
const KVM_MINOR: u32 = 232;

/// What must be there, by the name that KVM's documentation gives it.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The descriptor is another file.
    #[error("the descriptor is not /dev/kvm")]
    NotKvm,
    /// The descriptor has no status.
    #[error("the descriptor of /dev/kvm cannot be examined")]
    Stat(#[source] nix::Error),
    /// A kernel from before 2.6.22.
    #[error("KVM has API version {0} instead of {KVM_API_VERSION}")]
    ApiVersion(i32),
    /// A required part is missing.
    #[error("KVM lacks {0}")]
    Missing(&'static str),
    /// An ioctl failed.
    #[error("KVM refused to {0}")]
    Refused(&'static str, #[source] kvm_ioctls::Error),
    /// More memory regions than slot numbers.
    #[error("guest memory has too many regions")]
    TooManyRegions,
}

fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Refused(what, source)
}

/// A virtual machine.
#[derive(Debug, Clone)]
pub struct Vm {
    fd: Arc<VmFd>,
    kvm: Arc<Kvm>,
}

impl Vm {
    /// Makes a machine with in-kernel interrupt controllers and no timer chip: kernels take kvmclock and the local APIC's timer.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn new(device: OwnedFd) -> Result<Self, KvmError> {
        if !sys::is_character_device(device.as_fd(), MISC_MAJOR, KVM_MINOR).map_err(KvmError::Stat)? {
            return Err(KvmError::NotKvm);
        }
        // SAFETY: the descriptor is open, is /dev/kvm, and its ownership moves.
        let kvm = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(device.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            return Err(KvmError::ApiVersion(version));
        }
        if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(KvmError::Missing(name));
        }
        let fd = kvm.create_vm().map_err(refused("make a machine"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(refused("set its identity map address"))?;
        fd.set_tss_address(layout::KVM_TSS as usize).map_err(refused("set its TSS address"))?;
        fd.create_irq_chip().map_err(refused("make interrupt controllers"))?;
        Ok(Self { fd: Arc::new(fd), kvm: Arc::new(kvm) })
    }

    /// Gives the machine its memory. The caller keeps the mapping for as long as vCPUs run.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn set_memory(&self, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
        for (slot, region) in memory.iter().enumerate() {
            let kvm_region = kvm_userspace_memory_region {
                slot: u32::try_from(slot).map_err(|_| KvmError::TooManyRegions)?,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a mapping of guest memory that lives as long as the process (the machine
            // holds it until exit), and regions do not overlap.
            unsafe { self.fd.set_user_memory_region(kvm_region) }.map_err(refused("map guest memory"))?;
        }
        Ok(())
    }

    /// Makes a vCPU.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(u64::from(id)).map_err(refused("make a vCPU"))
    }

    /// What the back-end can show a guest of its processor.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("list CPUID leaves"))
    }

    /// Whether the local APIC has the TSC deadline timer.
    pub fn has_tsc_deadline_timer(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// Most vCPUs of one machine.
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// Makes `event` raise an interrupt line.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn connect_line(&self, event: &EventFd, line: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(event, line).map_err(refused("connect an interrupt line"))
    }

    /// Makes a 32-bit write of `value` at `address` signal `event`, without an exit.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn connect_notify(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(refused("connect a queue notification"))
    }

    /// Undoes [`Vm::connect_notify`].
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn disconnect_notify(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(refused("disconnect a queue notification"))
    }
}

thread_local! {
    /// The shared page of the vCPU that this thread runs.
    static RUN_PAGE: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// Kicks: a signal whose handler makes the next or current KVM_RUN of the thread return at once.
///
/// Without the flag a signal that lands just before KVM_RUN would be lost.
pub(crate) extern "C" fn leave_guest(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    RUN_PAGE.with(|page| {
        let page = page.get();
        if !page.is_null() {
            // SAFETY: the page is mapped while `RunGuard` lives on this thread, which resets the pointer on drop.
            // A volatile byte store is safe in a signal handler, and KVM reads the field atomically.
            unsafe { (&raw mut (*page).immediate_exit).write_volatile(1) };
        }
    });
}

/// While it lives, kicks reach the vCPU on this thread.
pub(crate) struct RunGuard(());

impl RunGuard {
    pub(crate) fn new(vcpu: &mut VcpuFd) -> Self {
        RUN_PAGE.with(|page| page.set(ptr::from_mut(vcpu.get_kvm_run())));
        Self(())
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        RUN_PAGE.with(|page| page.set(ptr::null_mut()));
    }
}

/// Why KVM stopped with KVM_EXIT_INTERNAL_ERROR.
pub(crate) fn internal_error_code(vcpu: &mut VcpuFd) -> u32 {
    let run = vcpu.get_kvm_run();
    // SAFETY: after this exit reason the kernel has filled the `internal` member of the union; it holds plain numbers.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}
