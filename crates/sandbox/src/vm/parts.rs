//! What a VM is made from, and its configuration as the VMM gets it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use nacre_protocol::ports::{CONTROL_PORT, SHARES_TAG};
use nacre_protocol::vm::{
    DiskConfig, Extent, FsConfig, HostPort, JailConfig, KernelLog, NetConfig, VmConfig, VsockConfig,
};

use crate::channel::FdTable;
use crate::network::Tap;

/// A disk of files laid end to end.
#[derive(Debug)]
pub struct Disk {
    /// Serial that the guest reads.
    pub id: String,
    /// Files with the bytes that each has on the disk.
    pub extents: Vec<(File, u64)>,
    /// Enforced by the VMM.
    pub read_only: bool,
}

/// All that a VM is made from, open.
#[derive(Debug)]
pub struct Parts {
    /// vCPUs.
    pub vcpus: u8,
    /// Guest memory.
    pub memory_mib: u32,
    /// How much the guest kernel prints.
    pub kernel_log: KernelLog,
    /// `/dev/kvm`.
    pub kvm: File,
    /// The guest kernel.
    pub kernel: File,
    /// The initial ramdisk.
    pub initramfs: File,
    /// Where streams to the guest are asked for.
    pub vsock: UnixListener,
    /// The VMM's end of the agent's control connection.
    pub agent: UnixStream,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Network links.
    pub taps: Vec<Tap>,
    /// The VMM's end of the vhost-user connection to the file server.
    pub fs: Option<OwnedFd>,
    /// Slots that are left free for devices that come later.
    pub hotplug_slots: u8,
    /// User and group that the VMM becomes.
    pub jail: Option<JailConfig>,
}

/// The write end of the serial pipe, until the VMM has it.
#[derive(Debug)]
pub struct Serial(pub(super) OwnedFd);

pub(super) fn configure<'a>(parts: &'a Parts, serial: &'a Serial, fds: &mut FdTable<'a>) -> VmConfig {
    let disks = parts.disks.iter().map(|disk| disk_config(disk, fds)).collect();
    let nets = parts.taps.iter().map(|tap| net_config(tap, fds)).collect();
    VmConfig {
        vcpus: parts.vcpus,
        memory_mib: parts.memory_mib,
        kvm: fds.add(&parts.kvm),
        kernel: fds.add(&parts.kernel),
        initramfs: fds.add(&parts.initramfs),
        kernel_log: parts.kernel_log,
        serial: fds.add(&serial.0),
        vsock: VsockConfig {
            listener: fds.add(&parts.vsock),
            host_ports: vec![HostPort { port: CONTROL_PORT, socket: fds.add(&parts.agent) }],
        },
        disks,
        nets,
        fs: parts.fs.as_ref().map(|socket| FsConfig { tag: SHARES_TAG.to_owned(), socket: fds.add(socket) }),
        balloon: true,
        rng: true,
        console: None,
        hotplug_slots: parts.hotplug_slots,
        jail: parts.jail.clone(),
    }
}

pub(super) fn disk_config<'a>(disk: &'a Disk, fds: &mut FdTable<'a>) -> DiskConfig {
    let extent =
        |(file, length_bytes): &'a (File, u64)| Extent { file: fds.add(file), length_bytes: *length_bytes };
    let extents = disk.extents.iter().map(extent).collect();
    DiskConfig { id: disk.id.clone(), extents, read_only: disk.read_only }
}

pub(super) fn net_config<'a>(tap: &'a Tap, fds: &mut FdTable<'a>) -> NetConfig {
    NetConfig { tap: fds.add(&tap.file), mac: tap.mac, mtu: tap.mtu }
}
