//! The control socket between `nacre-vmm` and its owner.
//!
//! A `SOCK_SEQPACKET` socket pair, descriptor [`CONTROL_FD`] in the VMM; one message a packet, JSON, at most
//! [`MAX_MESSAGE`] bytes and [`MAX_FDS`] descriptors. The owner sends [`Envelope`]s, the VMM answers each with a
//! [`Reply`] of the same id and, unasked, sends [`Event`]s. The first request is [`Request::Start`].
//!
//! ```text
//! owner                       VMM
//!   | start (config, fds) ---> |  builds, jails itself, runs the vCPUs
//!   | <------ reply (timings)  |
//!   | pause, plug, stats ... > |
//!   | <----------------- reply |
//!   | <---------- event exited |  the guest ended: the reason; then the process exits
//! ```
//!
//! End of file on the socket tells either side that the other is gone: the VMM then exits at once, the owner
//! reads the process's wait status and the serial pipe's last lines.

use serde::{Deserialize, Serialize};

use crate::vm::{DiskConfig, NetConfig, VmConfig};

/// Descriptor number of the control socket in the VMM.
pub const CONTROL_FD: i32 = 3;

/// Longest message in bytes.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// Most descriptors of one message (the kernel's SCM_MAX_FD is 253).
pub const MAX_FDS: usize = 253;

/// A request and the number that its reply repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// Chosen by the owner.
    pub id: u64,
    /// What to do.
    pub request: Request,
}

/// What an owner may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op", content = "args")]
pub enum Request {
    /// Build and run the machine; once, first.
    Start(Box<VmConfig>),
    /// Stop every vCPU and settle the devices. Repeating it changes nothing.
    Pause,
    /// Go on.
    Resume,
    /// Give a placeholder slot a disk. The reply names the slot, which the agent then binds.
    PlugDisk(DiskConfig),
    /// Give a placeholder slot a network link.
    PlugNet(NetConfig),
    /// Take a device away; the agent has unbound its driver before.
    Unplug {
        /// Slot number of a plugged device.
        slot: u32,
    },
    /// Ask the guest to give back this much memory through the balloon.
    ResizeBalloon {
        /// Target size of the balloon in MiB.
        target_mib: u32,
    },
    /// Counters of the VM.
    Stats,
    /// End the VM now, as if its power was cut.
    Stop,
}

/// Anything that the VMM sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromVmm {
    /// Answer to the request of this id.
    Reply {
        /// The request's id.
        id: u64,
        /// The result, or what went wrong.
        result: Result<Reply, Failure>,
    },
    /// Sent unasked.
    Event(Event),
}

/// A request that could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Short stable word for programs.
    pub kind: FailureKind,
    /// The whole chain of causes, for a person.
    pub message: String,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The request does not fit the state (a second start, an unplug of an empty slot).
    State,
    /// The request names something that cannot be (0 vCPUs, a descriptor that did not come).
    Invalid,
    /// /dev/kvm is missing, may not be used, or refuses.
    Kvm,
    /// The kernel or initramfs cannot be loaded.
    Image,
    /// The machine has not enough memory or descriptors.
    Resources,
    /// A device or its host side failed.
    Device,
    /// The jail could not be made.
    Jail,
}

/// Results of requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// The vCPUs run.
    Started(StartTimings),
    /// The slot that now has the device.
    Plugged {
        /// Slot number, below [`crate::vm::MAX_SLOTS`].
        slot: u32,
    },
    /// Answer to [`Request::Stats`].
    Stats(VmStats),
}

/// Microseconds from the VMM's first instruction in `main` to the end of each step of the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StartTimings {
    /// The start message was received and checked.
    pub config_us: u64,
    /// Memory is mapped, kernel and initramfs are in it.
    pub loaded_us: u64,
    /// VM, vCPUs and devices exist.
    pub built_us: u64,
    /// The jail is shut.
    pub jailed_us: u64,
    /// The vCPU threads run.
    pub running_us: u64,
}

/// Counters since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VmStats {
    /// Bytes of guest memory that the host has backed with pages.
    pub memory_resident_bytes: u64,
    /// Size of the balloon in bytes.
    pub balloon_bytes: u64,
    /// Bytes that came back through free page reporting.
    pub reported_free_bytes: u64,
    /// VM exits that reached the VMM: port I/O.
    pub pio_exits: u64,
    /// VM exits that reached the VMM: memory-mapped I/O.
    pub mmio_exits: u64,
    /// Guest mistakes that a device refused (bad descriptors, bad requests).
    pub device_errors: u64,
    /// Bytes of serial text that were dropped because nobody read them.
    pub serial_dropped_bytes: u64,
    /// CPU time of each vCPU thread in microseconds.
    pub vcpu_cpu_us: Vec<u64>,
}

/// What the VMM tells unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The guest is over; the process exits after this.
    Exited(ExitReason),
}

/// Why a guest is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest restarted the machine (its only way to switch off).
    GuestReset,
    /// The owner asked for it.
    Stopped,
    /// KVM gave up on a vCPU.
    VcpuFailed {
        /// Number of the vCPU.
        vcpu: u8,
        /// What KVM said.
        message: String,
    },
    /// A part of the VMM failed in a way that it cannot go on from.
    Internal {
        /// What it was.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_json() {
        let sent = Envelope { id: 7, request: Request::Unplug { slot: 3 } };
        let text = serde_json::to_vec(&sent).unwrap();
        assert_eq!(serde_json::from_slice::<Envelope>(&text).unwrap(), sent);

        let sent =
            FromVmm::Reply { id: 7, result: Err(Failure { kind: FailureKind::Kvm, message: "no".into() }) };
        let text = serde_json::to_vec(&sent).unwrap();
        assert_eq!(serde_json::from_slice::<FromVmm>(&text).unwrap(), sent);
    }

    #[test]
    fn unknown_request_is_an_error() {
        assert!(
            serde_json::from_str::<Envelope>(r#"{"id":1,"request":{"op":"exec","args":"/bin/sh"}}"#).is_err()
        );
    }
}
