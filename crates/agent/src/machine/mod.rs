//! The guest as a machine: its identity, facts, devices, links and end.

mod facts;
mod identity;
pub mod network;
mod shares;
mod slot;

pub use facts::{Facts, boottime_us};
pub use identity::{Identity, IdentityError};
pub use shares::{ShareError, mount_shares};
pub use slot::{SlotError, bind, unbind};
