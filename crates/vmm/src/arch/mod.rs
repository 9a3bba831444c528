//! All that depends on the processor's architecture.

#[cfg(target_arch = "x86_64")]
pub mod x86_64;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("nacre-vmm runs on x86_64 only so far");
