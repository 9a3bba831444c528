//! What a VM is made of, as its owner tells `nacre-vmm` in the [`start`](crate::control::Request::Start) message.
//!
//! No path stands here: every resource is a descriptor that travels with the message (`SCM_RIGHTS`), named by
//! its index in that message.

use serde::{Deserialize, Serialize};

/// Index of a descriptor in the message that carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdIndex(pub u32);

/// Most vCPUs of one VM: as many as the guest kernel is built for (`CONFIG_NR_CPUS`).
pub const MAX_VCPUS: u8 = 64;

/// Least guest memory, in MiB: below it the guest kernel does not reach init.
pub const MIN_MEMORY_MIB: u32 = 48;

/// Most guest memory, in MiB.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;

/// Longest [`DiskConfig::id`]: the bytes of a VIRTIO_BLK_T_GET_ID reply (virtio 1.2, section 5.2.6).
pub const MAX_DISK_ID_LEN: usize = 20;

/// Slots for devices, those of boot and the hot-plug placeholders together.
pub const MAX_SLOTS: usize = 32;

/// A whole machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// vCPUs that the guest sees, all online at boot; 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Guest memory in MiB, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// `/dev/kvm`, open for reading and writing.
    pub kvm: FdIndex,
    /// Uncompressed ELF kernel (`vmlinux`), entered by its 64-bit boot protocol.
    pub kernel: FdIndex,
    /// Initial ramdisk, newc cpio with the agent as `/init`.
    pub initramfs: FdIndex,
    /// How much the guest kernel prints on the serial port.
    pub kernel_log: KernelLog,
    /// Write end for the serial port's text (kernel messages, panics). The VMM never blocks on it: what does
    /// not fit is dropped and counted.
    pub serial: FdIndex,
    /// The vsock device; every VM has one.
    pub vsock: VsockConfig,
    /// Disks that are there at boot.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network links that are there at boot.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// The virtio-fs device, where host directories are shared.
    #[serde(default)]
    pub fs: Option<FsConfig>,
    /// Balloon with free page reporting (on unless switched off for a measurement).
    #[serde(default = "yes")]
    pub balloon: bool,
    /// Entropy device.
    #[serde(default = "yes")]
    pub rng: bool,
    /// virtio-console (hvc0) whose output goes to this descriptor; none: no such device.
    #[serde(default)]
    pub console: Option<FdIndex>,
    /// Placeholder slots (device id 0) for hot-plug.
    #[serde(default)]
    pub hotplug_slots: u8,
    /// What the VMM becomes before it runs guest code; none only for tests without root.
    pub jail: Option<JailConfig>,
}

fn yes() -> bool {
    true
}

/// Guest kernel log level, an allow-list instead of free command-line text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelLog {
    /// Warnings and worse (`quiet`).
    #[default]
    Quiet,
    /// Everything but debug messages.
    Info,
    /// Everything.
    Debug,
}

/// The vsock device (virtio 1.2, section 5.10) and its host side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// Listening Unix stream socket. A client writes `CONNECT <port>\n` (module [`crate::stream`]).
    pub listener: FdIndex,
    /// Host ports that the guest may connect to, each once.
    pub host_ports: Vec<HostPort>,
}

/// A host port with the connected Unix stream socket that the first connection of the guest gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    /// Port on the host's context id.
    pub port: u32,
    /// Connected Unix stream socket.
    pub socket: FdIndex,
}

/// A virtio-blk device (virtio 1.2, section 5.2): one or more raw files laid end to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Serial that the guest reads with VIRTIO_BLK_T_GET_ID; `[a-z0-9-]`, at most [`MAX_DISK_ID_LEN`] bytes.
    pub id: String,
    /// The parts, in order. The capacity is their sum. Never probed for a format.
    pub extents: Vec<Extent>,
    /// Enforced here, whatever the guest's driver asks: writes and discards fail, the device says VIRTIO_BLK_F_RO.
    pub read_only: bool,
}

/// A whole file as part of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    /// Regular file or block device, opened read-only for a read-only disk.
    pub file: FdIndex,
    /// Its bytes on the disk, a multiple of 512; the file may not be shorter.
    pub length_bytes: u64,
}

/// A virtio-net device (virtio 1.2, section 5.1) on a tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Open tap, with IFF_NO_PI and IFF_VNET_HDR set by its maker.
    pub tap: FdIndex,
    /// MAC address, six bytes.
    pub mac: [u8; 6],
    /// Largest packet without its link header, in bytes.
    pub mtu: u16,
}

/// A virtio-fs device (virtio 1.2, section 5.11), served by `nacre-fs` over vhost-user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// Mount tag, at most 36 bytes.
    pub tag: String,
    /// Connected vhost-user socket of the server.
    pub socket: FdIndex,
}

/// What the VMM turns itself into once it has its descriptors (B2 in `docs/threat-model.md`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// User id, not 0.
    pub uid: u32,
    /// Group id, not 0.
    pub gid: u32,
}
