//! The smallest guest: one page of real-mode code that counts down and halts.

#![expect(unsafe_code, reason = "a KVM memory slot is an address of this process")]

use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};

/// Guest physical address of the code.
const CODE: u64 = 0x1000;

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Time for `turns` of a two-instruction loop in ring 0.
pub(super) fn time_loop(turns: u32) -> anyhow::Result<Duration> {
    let mut page = Box::new(Page([0; 4096]));
    // 1: dec ecx; jnz 1b; hlt (16-bit code, operand-size prefix on dec)
    page.0[..6].copy_from_slice(&[0x66, 0x49, 0x75, 0xfc, 0xf4, 0xf4]);

    let vm = Kvm::new()?.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: CODE,
        memory_size: 4096,
        userspace_addr: std::ptr::from_mut(page.as_mut()) as u64,
    };
    // SAFETY: the region is exactly `page`: page-aligned, 4096 bytes, owned by this function and alive until it
    // returns; `vm` is dropped before `page` (locals drop in reverse order), so the slot never outlives it.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = CODE;
    regs.rcx = u64::from(turns);
    regs.rflags = 2;
    vcpu.set_regs(&regs)?;
    let start = Instant::now();
    match vcpu.run()? {
        VcpuExit::Hlt => Ok(start.elapsed()),
        other => anyhow::bail!("the test guest ended with {other:?} instead of a halt"),
    }
}
