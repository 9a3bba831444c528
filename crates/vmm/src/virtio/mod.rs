//! Virtio 1.2 devices over the MMIO transport.

pub mod balloon;
pub mod blk;
mod config;
pub mod console;
pub mod device;
pub mod fs;
pub mod mmio;
pub mod net;
mod queue;
pub mod rng;
pub mod slots;
mod sys;
#[cfg(test)]
mod testing;
pub mod thread;
pub mod vsock;
mod worker;
