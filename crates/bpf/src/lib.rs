//! Extended BPF: the two kinds of programs that nacre loads. Each is a few dozen instructions, written by hand and
//! checked by the kernel's verifier.
//!
//! ```text
//! device.rs     BPF_PROG_TYPE_CGROUP_DEVICE: which devices the processes of a cgroup may use
//! sk_lookup.rs  BPF_PROG_TYPE_SK_LOOKUP: which socket of a network namespace gets a packet for a local address
//! sys.rs        bpf(2)
//! ```

mod device;
mod instruction;
mod sk_lookup;
mod sys;

pub use device::{attach_device_program, detach_device_program, load_device_program};
pub use instruction::Insn;
pub use sk_lookup::{Destination, Steering, Transport, steer};
