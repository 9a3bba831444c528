//! `linux.devices`, and those that every container has.

use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use serde::{Deserialize, Serialize};

use super::{FdRef, InvalidSpec, clean};
use crate::container::BlockDevice;

const MAX_DEVICES: usize = 1024;
const MAX_MAJOR: i64 = (1 << 12) - 1;
const MAX_MINOR: i64 = (1 << 20) - 1;

/// A node to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DevicePlan {
    /// Cleaned path.
    pub(crate) path: String,
    pub(crate) kind: NodeKind,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// A node that the agent made, to be bound: a user namespace may not make nodes.
    pub(crate) fd: Option<FdRef>,
}

/// Type of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NodeKind {
    Char,
    Block,
    Fifo,
}

/// The OCI runtime specification's default devices (config-linux.md), all character devices of mode 0666.
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

impl DevicePlan {
    /// The node of a disk that has this number in the guest.
    pub(crate) fn of_disk(disk: &BlockDevice, (major, minor): (u32, u32)) -> Result<Self, InvalidSpec> {
        let path = clean("device path", Path::new(&disk.path))?;
        if Path::new(&path).file_name().is_none() {
            return Err(InvalidSpec::Device { path, problem: "the path names no file" });
        }
        let (mode, uid, gid) = (disk.mode, disk.uid, disk.gid);
        Ok(Self { path, kind: NodeKind::Block, major, minor, mode, uid, gid, fd: None })
    }
}

pub(super) fn from_linux(devices: &[LinuxDevice]) -> Result<Vec<DevicePlan>, InvalidSpec> {
    if devices.len() > MAX_DEVICES {
        return Err(InvalidSpec::Unsupported(format!("more than {MAX_DEVICES} devices")));
    }
    let asked = devices.iter().map(from_device).collect::<Result<Vec<_>, _>>()?;
    let missing = DEFAULTS.iter().filter(|(path, ..)| asked.iter().all(|device| device.path != *path));
    let mut all: Vec<_> = missing
        .map(|&(path, major, minor)| DevicePlan {
            path: path.to_owned(),
            kind: NodeKind::Char,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
            fd: None,
        })
        .collect();
    all.extend(asked);
    Ok(all)
}

fn from_device(device: &LinuxDevice) -> Result<DevicePlan, InvalidSpec> {
    let path = clean("device path", device.path())?;
    let bad = |problem| InvalidSpec::Device { path: path.clone(), problem };
    if Path::new(&path).file_name().is_none() {
        return Err(bad("the path names no file"));
    }
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => NodeKind::Char,
        LinuxDeviceType::B => NodeKind::Block,
        LinuxDeviceType::P => NodeKind::Fifo,
        LinuxDeviceType::A => return Err(bad("type \"a\" is for cgroup rules")),
    };
    let number = |value: i64, max: i64| match (kind, value) {
        (NodeKind::Fifo, _) => Ok(0),
        (_, value) if (0..=max).contains(&value) => Ok(value as u32),
        _ => Err(bad("the device number is out of range")),
    };
    Ok(DevicePlan {
        major: number(device.major(), MAX_MAJOR)?,
        minor: number(device.minor(), MAX_MINOR)?,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        fd: None,
        kind,
        path,
    })
}
