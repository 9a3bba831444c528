//! From the owner's message to checked resources: numbers in range, every descriptor there and used once.

use std::os::fd::OwnedFd;

use nacre_protocol::vm::{
    DiskConfig, FdIndex, FsConfig, HostPort, JailConfig, KernelLog, MAX_DISK_ID_LEN, MAX_MEMORY_MIB,
    MAX_SLOTS, MAX_VCPUS, MIN_MEMORY_MIB, NetConfig, VmConfig,
};

use crate::memory;

const SECTOR: u64 = 512;
/// Bytes of a tag in the configuration space of virtio-fs (virtio 1.2, section 5.11.4).
const MAX_FS_TAG_LEN: usize = 36;
/// Least MTU of a link that carries IPv4 (RFC 791), as virtio-net asks.
const MIN_MTU: u16 = 68;

/// A configuration that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// vCPUs out of range.
    #[error("a machine has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u8),
    /// Memory out of range.
    #[error("a machine has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB of memory, not {0}")]
    Memory(u32),
    /// A descriptor is named that did not come.
    #[error("{0} names descriptor {1}, which did not come with the message")]
    NoSuchFd(&'static str, u32),
    /// A descriptor is named twice.
    #[error("{0} names descriptor {1}, which is in use already")]
    FdTaken(&'static str, u32),
    /// More devices than slots.
    #[error("{0} devices and hot-plug slots are more than {MAX_SLOTS}")]
    TooManySlots(usize),
    /// A disk id that the guest could not read back, or not whole.
    #[error("disk id {0:?} is not 1 to {MAX_DISK_ID_LEN} characters of a-z, 0-9 and '-'")]
    DiskId(String),
    /// Two disks of one id.
    #[error("disk id {0:?} is used twice")]
    DiskIdTwice(String),
    /// A disk without bytes.
    #[error("disk {0:?} has no extents")]
    DiskEmpty(String),
    /// An extent that is no number of sectors.
    #[error("disk {0:?} has an extent of {1} bytes, which is not a positive multiple of {SECTOR}")]
    Extent(String, u64),
    /// A MAC address that is no station's.
    #[error("MAC address {0:02x?} is a group address or all zero")]
    Mac([u8; 6]),
    /// An MTU that no link has.
    #[error("MTU {0} is less than {MIN_MTU}")]
    Mtu(u16),
    /// A port twice.
    #[error("host port {0} is given twice")]
    HostPortTwice(u32),
    /// A tag that does not fit.
    #[error("file system tag {0:?} is not 1 to {MAX_FS_TAG_LEN} bytes without a zero")]
    FsTag(String),
    /// User or group 0.
    #[error("the jail's user and group must not be 0")]
    JailRoot,
}

/// Descriptors of one message; each can be taken once, and what nobody takes is closed.
#[derive(Debug)]
pub struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    /// The descriptors in the order in which they came.
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    fn take(&mut self, what: &'static str, index: FdIndex) -> Result<OwnedFd, ConfigError> {
        let place = usize::try_from(index.0).ok().and_then(|index| self.0.get_mut(index));
        place.ok_or(ConfigError::NoSuchFd(what, index.0))?.take().ok_or(ConfigError::FdTaken(what, index.0))
    }
}

/// A checked [`VmConfig`].
#[derive(Debug)]
pub struct Config {
    /// vCPUs.
    pub vcpus: u8,
    /// Guest memory.
    pub memory: memory::Size,
    /// `/dev/kvm`, not yet known to be it.
    pub kvm: OwnedFd,
    /// Kernel image.
    pub kernel: OwnedFd,
    /// Initial ramdisk.
    pub initramfs: OwnedFd,
    /// How much the kernel prints.
    pub kernel_log: KernelLog,
    /// Where the serial port writes.
    pub serial: OwnedFd,
    /// Devices at boot.
    pub devices: Devices,
    /// Empty slots.
    pub hotplug_slots: usize,
    /// What to become.
    pub jail: Option<JailConfig>,
}

/// Devices at boot.
#[derive(Debug)]
pub struct Devices {
    /// The vsock device.
    pub vsock: Vsock,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Network links.
    pub nets: Vec<Net>,
    /// File system.
    pub fs: Option<Fs>,
    /// Balloon.
    pub balloon: bool,
    /// Entropy.
    pub rng: bool,
    /// Console output.
    pub console: Option<OwnedFd>,
}

/// A checked `VsockConfig`.
#[derive(Debug)]
pub struct Vsock {
    /// Listening socket.
    pub listener: OwnedFd,
    /// Host ports with their sockets.
    pub host_ports: Vec<(u32, OwnedFd)>,
}

/// A checked [`DiskConfig`].
#[derive(Debug)]
pub struct Disk {
    /// Serial.
    pub id: String,
    /// Files and their bytes.
    pub extents: Vec<(OwnedFd, u64)>,
    /// Writes fail.
    pub read_only: bool,
}

/// A checked [`NetConfig`].
#[derive(Debug)]
pub struct Net {
    /// Open tap.
    pub tap: OwnedFd,
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU.
    pub mtu: u16,
}

/// A checked [`FsConfig`].
#[derive(Debug)]
pub struct Fs {
    /// Mount tag.
    pub tag: String,
    /// vhost-user socket.
    pub socket: OwnedFd,
}

/// Checks a machine and takes its descriptors.
///
/// # Errors
/// [`ConfigError`] for the first thing that cannot be.
pub fn check(config: VmConfig, mut fds: Fds) -> Result<Config, ConfigError> {
    let fds = &mut fds;
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return Err(ConfigError::Vcpus(config.vcpus));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&config.memory_mib) {
        return Err(ConfigError::Memory(config.memory_mib));
    }
    if config.jail.as_ref().is_some_and(|jail| jail.uid == 0 || jail.gid == 0) {
        return Err(ConfigError::JailRoot);
    }
    let slots = slots_needed(&config);
    if slots > MAX_SLOTS {
        return Err(ConfigError::TooManySlots(slots));
    }
    let mut ids: Vec<&str> = config.disks.iter().map(|disk| disk.id.as_str()).collect();
    ids.sort_unstable();
    if let Some(pair) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ConfigError::DiskIdTwice(pair[0].to_owned()));
    }
    Ok(Config {
        vcpus: config.vcpus,
        memory: memory::Size::from_mib(config.memory_mib),
        kvm: fds.take("kvm", config.kvm)?,
        kernel: fds.take("kernel", config.kernel)?,
        initramfs: fds.take("initramfs", config.initramfs)?,
        kernel_log: config.kernel_log,
        serial: fds.take("serial", config.serial)?,
        devices: Devices {
            vsock: Vsock {
                listener: fds.take("vsock listener", config.vsock.listener)?,
                host_ports: host_ports(config.vsock.host_ports, fds)?,
            },
            disks: config.disks.into_iter().map(|part| disk(part, fds)).collect::<Result<_, _>>()?,
            nets: config.nets.into_iter().map(|part| net(part, fds)).collect::<Result<_, _>>()?,
            fs: config.fs.map(|part| fs(part, fds)).transpose()?,
            balloon: config.balloon,
            rng: config.rng,
            console: config.console.map(|index| fds.take("console", index)).transpose()?,
        },
        hotplug_slots: usize::from(config.hotplug_slots),
        jail: config.jail,
    })
}

fn slots_needed(config: &VmConfig) -> usize {
    let single = 1 // vsock
        + usize::from(config.fs.is_some())
        + usize::from(config.balloon)
        + usize::from(config.rng)
        + usize::from(config.console.is_some());
    single + config.disks.len() + config.nets.len() + usize::from(config.hotplug_slots)
}

/// Checks a disk and takes its files.
///
/// # Errors
/// [`ConfigError`].
pub fn disk(config: DiskConfig, fds: &mut Fds) -> Result<Disk, ConfigError> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let len = config.id.len();
    if len == 0 || len > MAX_DISK_ID_LEN || !config.id.bytes().all(good) {
        return Err(ConfigError::DiskId(config.id));
    }
    if config.extents.is_empty() {
        return Err(ConfigError::DiskEmpty(config.id));
    }
    let mut extents = Vec::with_capacity(config.extents.len());
    for extent in config.extents {
        if extent.length_bytes == 0 || extent.length_bytes % SECTOR != 0 {
            return Err(ConfigError::Extent(config.id, extent.length_bytes));
        }
        extents.push((fds.take("disk", extent.file)?, extent.length_bytes));
    }
    Ok(Disk { id: config.id, extents, read_only: config.read_only })
}

/// Checks a network link and takes its tap.
///
/// # Errors
/// [`ConfigError`].
pub fn net(config: NetConfig, fds: &mut Fds) -> Result<Net, ConfigError> {
    if config.mac[0] & 1 != 0 || config.mac == [0; 6] {
        return Err(ConfigError::Mac(config.mac));
    }
    if config.mtu < MIN_MTU {
        return Err(ConfigError::Mtu(config.mtu));
    }
    Ok(Net { tap: fds.take("tap", config.tap)?, mac: config.mac, mtu: config.mtu })
}

fn fs(config: FsConfig, fds: &mut Fds) -> Result<Fs, ConfigError> {
    let len = config.tag.len();
    if len == 0 || len > MAX_FS_TAG_LEN || config.tag.bytes().any(|byte| byte == 0) {
        return Err(ConfigError::FsTag(config.tag));
    }
    Ok(Fs { tag: config.tag, socket: fds.take("file system socket", config.socket)? })
}

fn host_ports(config: Vec<HostPort>, fds: &mut Fds) -> Result<Vec<(u32, OwnedFd)>, ConfigError> {
    let mut ports: Vec<(u32, OwnedFd)> = Vec::with_capacity(config.len());
    for HostPort { port, socket } in config {
        if ports.iter().any(|(taken, _)| *taken == port) {
            return Err(ConfigError::HostPortTwice(port));
        }
        ports.push((port, fds.take("host port", socket)?));
    }
    Ok(ports)
}

#[cfg(test)]
mod tests;
