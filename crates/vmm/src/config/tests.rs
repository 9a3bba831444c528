use super::*;
use nacre_protocol::vm::{Extent, VsockConfig};
use std::fs::File;

fn fds(count: usize) -> Fds {
    Fds::new((0..count).map(|_| File::open("/dev/null").unwrap().into()).collect())
}

fn machine() -> VmConfig {
    VmConfig {
        vcpus: 1,
        memory_mib: 128,
        kvm: FdIndex(0),
        kernel: FdIndex(1),
        initramfs: FdIndex(2),
        kernel_log: KernelLog::Quiet,
        serial: FdIndex(3),
        vsock: VsockConfig { listener: FdIndex(4), host_ports: Vec::new() },
        disks: Vec::new(),
        nets: Vec::new(),
        fs: None,
        balloon: true,
        rng: true,
        console: None,
        hotplug_slots: 0,
        jail: None,
    }
}

fn disk_of(id: &str, length_bytes: u64) -> DiskConfig {
    let extents = vec![Extent { file: FdIndex(5), length_bytes }];
    DiskConfig { id: id.to_owned(), extents, read_only: true }
}

fn refused(change: impl FnOnce(&mut VmConfig)) -> ConfigError {
    let mut config = machine();
    change(&mut config);
    check(config, fds(8)).unwrap_err()
}

#[test]
fn smallest_machine_is_taken() {
    let config = check(machine(), fds(5)).unwrap();
    assert_eq!((config.vcpus, config.memory.bytes()), (1, 128 << 20));
}

#[test]
fn numbers_out_of_range_are_refused() {
    assert!(matches!(refused(|config| config.vcpus = 0), ConfigError::Vcpus(0)));
    assert!(matches!(refused(|config| config.vcpus = 65), ConfigError::Vcpus(65)));
    assert!(matches!(refused(|config| config.memory_mib = 47), ConfigError::Memory(47)));
    assert!(matches!(refused(|config| config.memory_mib = u32::MAX), ConfigError::Memory(_)));
}

#[test]
fn missing_descriptor_is_named() {
    assert!(matches!(check(machine(), fds(4)), Err(ConfigError::NoSuchFd("vsock listener", 4))));
    assert!(matches!(
        refused(|config| config.kernel = FdIndex(u32::MAX)),
        ConfigError::NoSuchFd("kernel", u32::MAX)
    ));
}

#[test]
fn descriptor_is_taken_once() {
    let error = refused(|config| config.initramfs = config.kernel);
    assert!(matches!(error, ConfigError::FdTaken("initramfs", 1)), "{error}");
}

#[test]
fn too_many_slots_are_refused() {
    assert!(matches!(refused(|config| config.hotplug_slots = 30), ConfigError::TooManySlots(33)));
}

#[test]
fn bad_disks_are_refused() {
    for id in ["", "A", "a/b", "a\0", "123456789012345678901"] {
        let error = refused(|config| config.disks.push(disk_of(id, 512)));
        assert!(matches!(error, ConfigError::DiskId(_)), "{id:?}");
    }
    for bytes in [0, 1, 511, 513] {
        let error = refused(|config| config.disks.push(disk_of("d", bytes)));
        assert!(matches!(error, ConfigError::Extent(_, _)), "{bytes}");
    }
    let twice = refused(|config| config.disks = vec![disk_of("d", 512), disk_of("d", 512)]);
    assert!(matches!(twice, ConfigError::DiskIdTwice(_)));
    let empty = DiskConfig { id: "d".into(), extents: Vec::new(), read_only: false };
    assert!(matches!(refused(|config| config.disks.push(empty)), ConfigError::DiskEmpty(_)));
}

#[test]
fn bad_links_are_refused() {
    let link = |mac, mtu| NetConfig { tap: FdIndex(5), mac, mtu };
    let group = refused(|config| config.nets.push(link([1, 0, 0, 0, 0, 1], 1500)));
    assert!(matches!(group, ConfigError::Mac(_)));
    let tiny = refused(|config| config.nets.push(link([2, 0, 0, 0, 0, 1], 67)));
    assert!(matches!(tiny, ConfigError::Mtu(67)));
}

#[test]
fn host_port_is_given_once() {
    let ports = [5, 6].map(|socket| HostPort { port: 1024, socket: FdIndex(socket) });
    let error = refused(|config| config.vsock.host_ports = ports.to_vec());
    assert!(matches!(error, ConfigError::HostPortTwice(1024)));
}

#[test]
fn root_is_no_jail() {
    let error = refused(|config| config.jail = Some(JailConfig { uid: 0, gid: 5 }));
    assert!(matches!(error, ConfigError::JailRoot));
}
