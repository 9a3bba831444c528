//! The state that a vCPU wakes up in.
//!
//! The boot vCPU enters the kernel as its 64-bit protocol asks: long mode, flat segments, the first GiB mapped to
//! itself, interrupts off, `rsi` at the zero page. The others wait for their start-up interrupt in the state that the processor's reset left.
//!
//! Local APIC: KVM's reset state is right (software-disabled, LINT0 of the boot vCPU as ExtINT); the kernel sets up the rest.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::layout;

/// A vCPU that did not take its first state.
#[derive(Debug, thiserror::Error)]
pub enum RegsError {
    /// General registers.
    #[error("general registers were refused")]
    General(#[source] kvm_ioctls::Error),
    /// Segments and control registers.
    #[error("segment and control registers were refused")]
    Special(#[source] kvm_ioctls::Error),
    /// Floating point.
    #[error("floating point state was refused")]
    Fpu(#[source] kvm_ioctls::Error),
    /// The list of MSRs cannot be allocated.
    #[error("list of MSRs could not be made")]
    MsrList(#[source] vmm_sys_util::fam::Error),
    /// An MSR.
    #[error("MSRs were refused")]
    Msrs(#[source] kvm_ioctls::Error),
    /// KVM took only a part of the MSRs.
    #[error("MSR {0:#x} was refused")]
    Msr(u32),
}

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLED: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;
const FCW_DEFAULT: u16 = 0x37f;
const MXCSR_DEFAULT: u32 = 0x1f80;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MISC_ENABLE_FAST_STRINGS: u64 = 1 << 0;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// MSRs that differ from KVM's reset state, and why.
const MSRS: &[(u32, u64)] = &[
    // Firmware turns fast string instructions on; the kernel asks before it uses them.
    (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
    // Memory is cacheable, as firmware would say; at reset all of it is uncached.
    (IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
];

/// Sets what every vCPU needs.
///
/// # Errors
/// [`RegsError`].
pub fn set_common(vcpu: &VcpuFd) -> Result<(), RegsError> {
    let fpu = kvm_fpu { fcw: FCW_DEFAULT, mxcsr: MXCSR_DEFAULT, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(RegsError::Fpu)?;
    let entries: Vec<_> =
        MSRS.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    let msrs = Msrs::from_entries(&entries).map_err(RegsError::MsrList)?;
    let taken = vcpu.set_msrs(&msrs).map_err(RegsError::Msrs)?;
    match MSRS.get(taken) {
        Some((index, _)) => Err(RegsError::Msr(*index)),
        None => Ok(()),
    }
}

/// Puts the boot vCPU at the kernel's 64-bit entry.
///
/// # Errors
/// [`RegsError`].
pub fn set_entry(vcpu: &VcpuFd, entry: u64) -> Result<(), RegsError> {
    let mut sregs = vcpu.get_sregs().map_err(RegsError::Special)?;
    enter_long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(RegsError::Special)?;
    let regs = kvm_regs { rip: entry, rsi: layout::ZERO_PAGE, rflags: RFLAGS_RESERVED, ..Default::default() };
    vcpu.set_regs(&regs).map_err(RegsError::General)
}

fn enter_long_mode(sregs: &mut kvm_sregs) {
    const CODE: u8 = 0xb; // execute, read, accessed
    const DATA: u8 = 0x3; // read, write, accessed
    const BUSY_TSS: u8 = 0xb;
    const BOOT_CS: u16 = 0x10;
    const BOOT_DS: u16 = 0x18;
    const TSS: u16 = 0x20;
    let flat = |type_, selector| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment { l: 1, ..flat(CODE, BOOT_CS) };
    let data = kvm_segment { db: 1, ..flat(DATA, BOOT_DS) };
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, selector: TSS, type_: BUSY_TSS, present: 1, ..Default::default() };
    // The kernel loads its own tables before it loads a segment or takes an exception.
    sregs.gdt.limit = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION | CR0_PAGING;
    sregs.cr3 = layout::PAGE_TABLE_4;
    sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer = EFER_LONG_MODE_ENABLED | EFER_LONG_MODE_ACTIVE;
}
