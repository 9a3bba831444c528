//! x86_64: where things lie in guest memory, the boot protocol, and the state that a vCPU wakes up in.
//!
//! The kernel is entered by its 64-bit protocol: an uncompressed ELF image at its link address, in long mode, with
//! memory map, initramfs and command line in the "zero page". (PVH would do too; its entry costs the kernel 256
//! exits in search of Xen.) There is no firmware; a multiprocessor table says what ACPI would.

pub mod boot_params;
pub mod cmdline;
pub mod cpuid;
pub mod layout;
pub mod loader;
pub mod mptable;
pub mod regs;
