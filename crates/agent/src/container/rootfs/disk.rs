//! The disk that holds a container's layers, and its partitions.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nacre_protocol::vm::MAX_DISK_ID_LEN;
use rustix::fs::{Mode, OFlags, fstat, fsync, major, minor, open};
use rustix::io::Errno;

use super::RootfsError;
use crate::container::LayerExtent;
use crate::container::sys::mount::{add_partition, delete_partition};

/// How long a hot-plugged disk may take to appear.
const APPEAR: Duration = Duration::from_secs(5);
/// How long the last mount may take to let go of a partition.
const RELEASE: Duration = Duration::from_secs(10);
/// sysfs has no notification for new disks; a pause between looks.
const PAUSE: Duration = Duration::from_millis(2);

/// An open disk.
#[derive(Debug)]
pub(super) struct Disk {
    name: String,
    device: OwnedFd,
}

impl Disk {
    /// Waits for the disk with this serial.
    ///
    /// # Errors
    /// [`RootfsError::NoDisk`] where none appears.
    pub(super) fn wait_for(id: &str) -> Result<Self, RootfsError> {
        let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if id.is_empty() || id.len() > MAX_DISK_ID_LEN || !id.bytes().all(good) {
            return Err(RootfsError::Name(id.to_owned()));
        }
        let deadline = Instant::now() + APPEAR;
        loop {
            if let Some(name) = find(Path::new("/sys/block"), id) {
                return Self::open(name);
            }
            if Instant::now() >= deadline {
                return Err(RootfsError::NoDisk(id.to_owned()));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Its node in the guest's `/dev`.
    pub(super) fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Its device number.
    ///
    /// # Errors
    /// [`RootfsError::Path`].
    pub(super) fn number(&self) -> Result<(u32, u32), RootfsError> {
        let found = fstat(&self.device).map_err(self.failed("look at"))?;
        Ok((major(found.st_rdev), minor(found.st_rdev)))
    }

    /// Waits until no mount has it any more, and until what was written to it is on it.
    ///
    /// # Errors
    /// [`RootfsError::Path`] where it stays in use.
    pub(super) fn release(&self) -> Result<(), RootfsError> {
        let deadline = Instant::now() + RELEASE;
        // A mount holds its device exclusively.
        let exclusive = || open(self.node(), OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty());
        loop {
            match exclusive() {
                Ok(_) => break,
                Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                // It was unplugged.
                Err(Errno::NOENT | Errno::NXIO | Errno::NODEV) => return Ok(()),
                Err(source) => return Err(self.failed("release")(source)),
            }
        }
        fsync(&self.device).map_err(self.failed("write to"))
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(Errno) -> RootfsError {
        let path = self.node();
        move |source| RootfsError::Path { action, path, source }
    }

    fn open(name: String) -> Result<Self, RootfsError> {
        let path = Path::new("/dev").join(&name);
        let device = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| RootfsError::Path { action: "open", path, source })?;
        Ok(Self { name, device })
    }
}

/// Name of the block device whose serial is `id`.
fn find(sys_block: &Path, id: &str) -> Option<String> {
    let entries = fs::read_dir(sys_block).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.into_iter().find(|name| {
        let serial = fs::read_to_string(sys_block.join(name).join("serial"));
        serial.is_ok_and(|serial| serial.trim_end_matches(['\n', '\0']) == id)
    })
}

/// Partitions that were made, to be deleted again. Dropping it leaves them.
#[derive(Debug)]
pub(super) struct Partitions {
    disk: Disk,
    /// Numbers that exist: 1 to this.
    count: u16,
}

impl Partitions {
    /// Makes one partition for each layer, numbered from 1.
    ///
    /// # Errors
    /// [`RootfsError::Partition`]; none is left then.
    pub(super) fn add(disk: Disk, layers: &[LayerExtent]) -> Result<Self, RootfsError> {
        let mut partitions = Self { disk, count: 0 };
        for layer in layers {
            let number = partitions.count + 1;
            let added =
                add_partition(&partitions.disk.device, number, layer.offset_bytes, layer.length_bytes);
            if let Err(source) = added {
                let error = partitions.error("add", number, source);
                partitions.delete()?;
                return Err(error);
            }
            partitions.count = number;
        }
        Ok(partitions)
    }

    /// Device nodes, in the order of the layers.
    pub(super) fn nodes(&self) -> impl DoubleEndedIterator<Item = PathBuf> {
        // Linux puts a "p" between a name that ends with a digit and the number.
        let separator = if self.disk.name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        (1..=self.count)
            .map(move |number| PathBuf::from(format!("/dev/{}{separator}{number}", self.disk.name)))
    }

    /// Deletes what is left, the last one first.
    ///
    /// A mount namespace is taken apart by its last process after that has ended, so a partition may be in use for
    /// a moment longer.
    ///
    /// # Errors
    /// [`RootfsError::Partition`] where one stays in use.
    pub(super) fn delete(&mut self) -> Result<(), RootfsError> {
        let deadline = Instant::now() + RELEASE;
        while self.count > 0 {
            match delete_partition(&self.disk.device, self.count) {
                Ok(()) | Err(Errno::NXIO) => self.count -= 1,
                Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                // The disk itself was unplugged, and its partitions went with it.
                Err(Errno::NODEV) => self.count = 0,
                Err(source) => return Err(self.error("delete", self.count, source)),
            }
        }
        Ok(())
    }

    fn error(&self, action: &'static str, number: u16, source: Errno) -> RootfsError {
        RootfsError::Partition { action, number, disk: self.disk.name.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_is_found_by_its_whole_serial() {
        let dir = tempfile::tempdir().unwrap();
        for (name, serial) in [("vda", "layers-1"), ("vdb", "layers-10\n"), ("loop0", "")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("serial"), serial).unwrap();
        }
        fs::create_dir(dir.path().join("ram0")).unwrap();
        assert_eq!(find(dir.path(), "layers-1").as_deref(), Some("vda"));
        assert_eq!(find(dir.path(), "layers-10").as_deref(), Some("vdb"));
        assert_eq!(find(dir.path(), "layers"), None);
    }

    #[test]
    fn serials_that_the_protocol_does_not_allow_are_refused() {
        for bad in ["", "Layers", "a/b", "0123456789012345678901", "a\n"] {
            assert!(matches!(Disk::wait_for(bad), Err(RootfsError::Name(_))), "{bad:?}");
        }
    }
}
