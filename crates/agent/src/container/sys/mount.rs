//! mount_setattr(2) and partitions by ioctl.

use std::os::fd::{AsFd, AsRawFd};

use super::check;

/// Attributes of mounts (mount_setattr(2)).
pub(crate) const ATTR_RDONLY: u64 = 0x1;
/// No set-user-id, no file capabilities.
pub(crate) const ATTR_NOSUID: u64 = 0x2;
/// No device nodes.
pub(crate) const ATTR_NODEV: u64 = 0x4;
/// No programs.
pub(crate) const ATTR_NOEXEC: u64 = 0x8;
/// Mask of the access time modes.
pub(crate) const ATTR_ATIME_MASK: u64 = 0x70;
/// Access times are not kept.
pub(crate) const ATTR_NOATIME: u64 = 0x10;
/// Access times are always kept.
pub(crate) const ATTR_STRICTATIME: u64 = 0x20;
/// Access times of directories are not kept.
pub(crate) const ATTR_NODIRATIME: u64 = 0x80;
/// Symbolic links are not followed.
pub(crate) const ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

/// A change of a mount's attributes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct MountAttr {
    /// Attributes to set.
    pub(crate) set: u64,
    /// Attributes to clear.
    pub(crate) clear: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE or MS_UNBINDABLE; 0: as it is.
    pub(crate) propagation: u64,
}

impl MountAttr {
    /// Whether there is nothing to change.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[repr(C)]
struct RawMountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes the mount that `mount` is the root of; with `recursive`, all mounts below it too.
///
/// # Errors
/// Those of mount_setattr(2).
pub(crate) fn mount_setattr(mount: impl AsFd, attr: &MountAttr, recursive: bool) -> rustix::io::Result<()> {
    let raw = RawMountAttr {
        attr_set: attr.set,
        attr_clr: attr.clear,
        propagation: attr.propagation,
        userns_fd: 0,
    };
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a NUL-terminated literal, `raw` has the layout of struct mount_attr and the size given.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const raw,
            size_of_val(&raw),
        )
    };
    check(ret).map(|_| ())
}

/// `BLKPG` of <linux/blkpg.h>: _IO(0x12, 105).
const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_ADD_PARTITION: libc::c_int = 1;
const BLKPG_DEL_PARTITION: libc::c_int = 2;

#[repr(C)]
struct BlkpgPartition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    pno: libc::c_int,
    devname: [u8; 64],
    volname: [u8; 64],
}

#[repr(C)]
struct BlkpgIoctlArg {
    op: libc::c_int,
    flags: libc::c_int,
    datalen: libc::c_int,
    data: *mut BlkpgPartition,
}

/// Makes partition `number` of a block device, `start` and `length` in bytes.
///
/// # Errors
/// Those of the ioctl: `Errno::BUSY` where it overlaps another or the number is taken.
pub(crate) fn add_partition(
    device: impl AsFd,
    number: u16,
    start: u64,
    length: u64,
) -> rustix::io::Result<()> {
    blkpg(device, BLKPG_ADD_PARTITION, number, start, length)
}

/// Removes partition `number`.
///
/// # Errors
/// Those of the ioctl: `Errno::BUSY` while it is in use, `Errno::NXIO` where there is none.
pub(crate) fn delete_partition(device: impl AsFd, number: u16) -> rustix::io::Result<()> {
    blkpg(device, BLKPG_DEL_PARTITION, number, 0, 0)
}

fn blkpg(device: impl AsFd, op: i32, number: u16, start: u64, length: u64) -> rustix::io::Result<()> {
    let number_too_large = |_| rustix::io::Errno::INVAL;
    let mut partition = BlkpgPartition {
        start: i64::try_from(start).map_err(number_too_large)?,
        length: i64::try_from(length).map_err(number_too_large)?,
        pno: i32::from(number),
        devname: [0; 64],
        volname: [0; 64],
    };
    let datalen = size_of::<BlkpgPartition>() as libc::c_int;
    let arg = BlkpgIoctlArg { op, flags: 0, datalen, data: &raw mut partition };
    // SAFETY: BLKPG takes a blkpg_ioctl_arg whose data is a blkpg_partition of `datalen` bytes; both live here.
    let ret = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKPG, &raw const arg) };
    check(libc::c_long::from(ret)).map(|_| ())
}
