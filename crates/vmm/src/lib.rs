//! The virtual machine monitor.

pub mod jail;
pub mod virtio;
