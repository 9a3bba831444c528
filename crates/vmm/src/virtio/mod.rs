//! Virtio 1.2 devices over the MMIO transport.

pub mod blk;
mod config;
pub mod device;
mod queue;
pub mod rng;
mod sys;
#[cfg(test)]
mod testing;
pub mod thread;
mod worker;
