//! Mounts of the host's kernel, which are never served: what mountinfo says of them, and the look at each device that a guest
//! comes upon.
//!
//! Those below a share are taken away before it is served ([`crate::jail`]). Where a share follows its host, one can come
//! later, as a mount of proc in a directory that is shared, and the server, which cannot unmount, must not go there.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The mounts of this process, as it sees them from its root.
pub(crate) const TABLE: &str = "/proc/self/mountinfo";

/// File systems of the host's kernel, by the names of /proc/filesystems. Mounted somewhere below a share (as in a chroot that has
/// its /proc), they would be served with this process's own rights over the host's kernel.
const KERNEL_TREES: [&str; 17] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "bpf",
    "pstore",
    "efivarfs",
    "binfmt_misc",
    "configfs",
    "selinuxfs",
    "devpts",
    "devtmpfs",
    "mqueue",
    "nsfs",
];

/// A mount of one of [`KERNEL_TREES`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KernelTree {
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// `st_dev` of its files.
    device: u64,
}

/// A line of mountinfo (proc_pid_mountinfo(5)): the mount, if it is one of the kernel's.
pub(crate) fn kernel_tree(line: &str) -> Option<KernelTree> {
    let (mount, source) = line.split_once(" - ")?;
    let kind = source.split(' ').next()?;
    KERNEL_TREES.contains(&kind).then_some(())?;
    Some(KernelTree { point: unescaped(mount.split(' ').nth(4)?), device: device(mount)? })
}

/// `st_dev` of a line, if it is that of an overlayfs: a root file system, which the host does not write to.
fn overlay(line: &str) -> Option<u64> {
    let (mount, source) = line.split_once(" - ")?;
    (source.split(' ').next()? == "overlay").then(|| device(mount)).flatten()
}

/// The third field of a line: `major:minor`.
fn device(mount: &str) -> Option<u64> {
    let (major, minor) = mount.split(' ').nth(2)?.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// A path in which space, tab, newline and backslash stand as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let octal = after.first_chunk::<3>().filter(|_| *byte == b'\\');
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(*byte));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Which devices are file systems of the kernel, and which are root file systems, as of now.
#[derive(Default)]
pub(crate) struct Devices(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Opened in the jail: a table that was opened before is that of the root from then.
    table: Option<File>,
    kernels: HashSet<u64>,
    overlays: HashSet<u64>,
}

impl Devices {
    /// Whether files with this `st_dev` belong to the host's kernel.
    ///
    /// # Errors
    /// When the table of mounts cannot be read. Nothing must be served then.
    pub(crate) fn is_kernels(&self, device: u64) -> io::Result<bool> {
        self.with(|known| known.kernels.contains(&device))
    }

    /// Whether they belong to an overlayfs. Files of one whose layers are on several file systems can have other numbers.
    ///
    /// # Errors
    /// When the table of mounts cannot be read.
    pub(crate) fn is_overlay(&self, device: u64) -> io::Result<bool> {
        self.with(|known| known.overlays.contains(&device))
    }

    fn with<T>(&self, ask: impl FnOnce(&Known) -> T) -> io::Result<T> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_outdated()? {
            known.read()?;
        }
        Ok(ask(&known))
    }
}

impl Known {
    /// The kernel tells a change of the table as `POLLPRI`, once to each open file of it.
    fn is_outdated(&self) -> io::Result<bool> {
        let Some(table) = &self.table else { return Ok(true) };
        let mut fds = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        poll(&mut fds, PollTimeout::ZERO)?;
        Ok(fds[0].revents().is_none_or(|events| events.intersects(PollFlags::POLLPRI | PollFlags::POLLERR)))
    }

    fn read(&mut self) -> io::Result<()> {
        // Until it has been read to its end, there is none.
        let mut table = match self.table.take() {
            Some(table) => table,
            None => File::open(TABLE)?,
        };
        table.rewind()?;
        let mut text = String::new();
        table.read_to_string(&mut text)?;
        self.kernels = text.lines().filter_map(kernel_tree).map(|tree| tree.device).collect();
        self.overlays = text.lines().filter_map(overlay).collect();
        self.table = Some(table);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_tree_is_known_by_its_type_with_point_and_device() {
        let tree = kernel_tree(r"53 20 0:21 / /a\040b rw,nosuid shared:7 - proc proc rw").unwrap();
        assert_eq!(tree, KernelTree { point: "/a b".into(), device: libc::makedev(0, 21) });
        assert_eq!(kernel_tree("54 20 259:1 / /data rw - ext4 /dev/vda rw"), None);
        assert_eq!(kernel_tree("no line"), None);
    }

    #[test]
    fn device_of_proc_is_found_and_that_of_a_file_is_not() {
        use std::os::unix::fs::MetadataExt as _;
        let (devices, dir) = (Devices::default(), tempfile::tempdir().unwrap());
        let proc = std::fs::metadata("/proc").unwrap().dev();
        assert!(devices.is_kernels(proc).unwrap() && !devices.is_overlay(proc).unwrap());
        assert!(!devices.is_kernels(dir.path().metadata().unwrap().dev()).unwrap());
    }

    #[test]
    fn overlay_is_known_by_its_type() {
        let line = "61 20 0:47 / /shares/root ro,nosuid - overlay overlay rw,lowerdir=/a";
        assert_eq!(overlay(line), Some(libc::makedev(0, 47)));
        assert_eq!(overlay("54 20 259:1 / /overlay rw - ext4 overlay rw"), None);
    }
}
