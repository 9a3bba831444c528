//! x86_64: where things lie in guest memory, the boot protocol, and the state that a vCPU wakes up in.
//!
//! The kernel is entered by PVH (`docs/devices/boot.md`): an uncompressed ELF image at its link address, in 32-bit
//! protected mode, with memory map, initramfs and command line in a `hvm_start_info`. There is no firmware; a
//! multiprocessor table says what ACPI would.

pub mod cmdline;
pub mod cpuid;
pub mod layout;
pub mod loader;
pub mod mptable;
pub mod regs;
pub mod start_info;
