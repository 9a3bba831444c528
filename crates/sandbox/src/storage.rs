//! The root file system on the host: EROFS blobs opened for a disk, or mounts made on the bundle's directory.

mod lowers;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_remount, unmount,
};

use crate::mount_points;
use crate::plan::rootfs::{Mount, RootfsPlan, lay_out};
use crate::plan::{BlockDevice, Plan, Share};
use crate::users::{self, IdMapError, IdMaps};
use crate::vm::Disk;

/// Magic number of an EROFS superblock, and where it stands.
const EROFS_MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();
const EROFS_MAGIC_AT: u64 = 1024;

/// File systems through which a kernel is read and steered (linux/magic.h): proc, sysfs, cgroup, cgroup2, debugfs, tracefs,
/// securityfs, bpf, pstore, efivarfs, binfmt_misc, configfs, selinuxfs, devpts, nsfs.
const KERNEL_TREES: [u32; 15] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x6165_676c,
    0xde5e_81e4,
    0x4249_4e4d,
    0x6265_6570,
    0xf97c_ff8c,
    0x1cd1,
    0x6e73_6673,
];

/// Whether `f_type` of statfs(2) is one of [`KERNEL_TREES`].
pub(crate) fn is_kernel_tree(kind: rustix::fs::FsWord) -> bool {
    // The field's type differs between architectures; the magic numbers have 32 bits.
    u32::try_from(kind & 0xffff_ffff).is_ok_and(|kind| KERNEL_TREES.contains(&kind))
}

/// Sector size: extents of a disk are multiples of it.
const SECTOR: u64 = 512;

/// The kernel takes one page of mount options.
pub(crate) const MAX_MOUNT_DATA: usize = 4095;

/// A root file system or share that cannot be given to the guest.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A blob cannot be opened.
    #[error("cannot open layer {path}")]
    OpenLayer {
        /// The blob.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A disk cannot be opened.
    #[error("cannot open {path} as a disk")]
    OpenDisk {
        /// The device or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A blob is none.
    #[error("layer {path} is not an EROFS image; pull its image again")]
    NotErofs {
        /// The file.
        path: PathBuf,
    },
    /// All layers together have more bytes than a disk can.
    #[error("the layers are too long for one disk")]
    TooLong,
    /// A host path to share is not there.
    #[error("cannot open {path}, which is mounted into the container")]
    OpenShare {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A share is a file system of the host's kernel.
    #[error("{path} belongs to the host's kernel and is not shared with a guest")]
    KernelTree {
        /// The path.
        path: PathBuf,
    },
    /// A mount failed.
    #[error("cannot mount {kind} on {path}")]
    Mount {
        /// File system type.
        kind: String,
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something to mount on cannot be made in a root that the guest may not write to.
    #[error("cannot make {path} in the root file system, for a mount of the container's")]
    MountPoint {
        /// Its path in the container.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel makes no user namespace.
    #[error("cannot make a user namespace, to map the ids of files")]
    UserNamespace(#[source] io::Error),
    /// Ids of a root file system that cannot be.
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    /// More options than the kernel takes.
    #[error("mount options of {0} bytes are more than the kernel takes")]
    LongOptions(usize),
}

/// The disk of a layered root, and where each layer lies on it.
#[derive(Debug)]
pub struct LayerDisk {
    /// For the VMM.
    pub disk: Disk,
    /// For the agent: offset and length of each, bottom first.
    pub layers: Vec<(u64, u64)>,
}

/// Opens the blobs of a layered root and lays them end to end.
///
/// # Errors
/// See [`StorageError`].
pub fn open_layers(disk_id: &str, blobs: &[PathBuf]) -> Result<LayerDisk, StorageError> {
    let mut extents = Vec::with_capacity(blobs.len());
    for path in blobs {
        extents.push(open_layer(path)?);
    }
    let lengths: Vec<u64> = extents.iter().map(|(_, length)| *length).collect();
    let layers = lay_out(&lengths).ok_or(StorageError::TooLong)?;
    Ok(LayerDisk { disk: Disk { id: disk_id.to_owned(), extents, read_only: true }, layers })
}

/// The disks of a container, open.
#[derive(Debug, Default)]
pub struct OpenDisks {
    /// For the VMM.
    pub disks: Vec<Disk>,
    /// Where the layers of its root lie on the first of them, where it has layers.
    pub layers: Vec<(u64, u64)>,
}

/// Opens the disks that a plan names: that of the root file system first, then its block devices.
///
/// # Errors
/// See [`StorageError`].
pub fn open_disks(plan: &Plan) -> Result<OpenDisks, StorageError> {
    let mut open = OpenDisks::default();
    match &plan.rootfs {
        RootfsPlan::Layers { blobs, disk_id, .. } => {
            let LayerDisk { disk, layers } = open_layers(disk_id, blobs)?;
            open = OpenDisks { disks: vec![disk], layers };
        }
        RootfsPlan::Disk { source, disk_id, read_only } => {
            let extents = vec![open_whole(source, *read_only)?];
            open.disks.push(Disk { id: disk_id.clone(), extents, read_only: *read_only });
        }
        RootfsPlan::Directory { .. } | RootfsPlan::None => {}
    }
    for device in &plan.devices {
        let extents = vec![open_whole(&node_of(device)?, device.read_only)?];
        open.disks.push(Disk { id: device.disk_id.clone(), extents, read_only: device.read_only });
    }
    Ok(open)
}

/// A whole device or file, and its length; what is beyond the last sector is not the guest's.
fn open_whole(path: &Path, read_only: bool) -> Result<(File, u64), StorageError> {
    let failed = |source| StorageError::OpenDisk { path: path.to_owned(), source };
    let mut file = File::options().read(true).write(!read_only).open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(failed(io::Error::other("it is neither a file nor a block device")));
    }
    let length = file.seek(SeekFrom::End(0)).map_err(failed)?;
    Ok((file, length - length % SECTOR))
}

/// The node of a block device in the host's `/dev`, by the name that the kernel has for its number.
fn node_of(device: &BlockDevice) -> Result<PathBuf, StorageError> {
    let BlockDevice { path, major, minor, .. } = device;
    let failed = |source| StorageError::OpenDisk { path: PathBuf::from(path), source };
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).map_err(failed)?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let node = name.map(|name| Path::new("/dev").join(name));
    let node = node.ok_or_else(|| failed(io::Error::other("the kernel has no name for it")))?;
    let found = std::fs::metadata(&node).map_err(failed)?.rdev();
    if (rustix::fs::major(found), rustix::fs::minor(found)) != (*major, *minor) {
        return Err(failed(io::Error::other(format!("{} is another device", node.display()))));
    }
    Ok(node)
}

fn open_layer(path: &Path) -> Result<(File, u64), StorageError> {
    let failed = |source| StorageError::OpenLayer { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let length = if metadata.file_type().is_block_device() {
        file.seek(SeekFrom::End(0)).map_err(failed)?
    } else {
        metadata.len()
    };
    let mut magic = [0; 4];
    let read = file.read_exact_at(&mut magic, EROFS_MAGIC_AT);
    if read.is_err() || magic != EROFS_MAGIC || !length.is_multiple_of(SECTOR) {
        return Err(StorageError::NotErofs { path: path.to_owned() });
    }
    Ok((file, length))
}

/// What is shared, open.
#[derive(Debug, Default)]
pub struct OpenShares {
    /// A descriptor for each share.
    pub files: Vec<OwnedFd>,
    /// That of those whose ids are mapped.
    pub user_namespace: Option<OwnedFd>,
}

/// Opens each share, not for reading: the descriptor only says which file or directory is meant. `users` are the ids of those
/// whose ids are mapped.
///
/// # Errors
/// [`StorageError::OpenShare`]; [`StorageError::KernelTree`] for one that a link or a path led to;
/// [`StorageError::UserNamespace`].
pub fn open_shares(shares: &[Share], users: Option<&IdMaps>) -> Result<OpenShares, StorageError> {
    let open = |share: &Share| {
        let failed = |error: rustix::io::Errno| StorageError::OpenShare {
            path: share.source.clone(),
            source: error.into(),
        };
        let file =
            rustix::fs::open(&share.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let kind = rustix::fs::fstatfs(&file).map_err(failed)?.f_type;
        if is_kernel_tree(kind) {
            return Err(StorageError::KernelTree { path: share.source.clone() });
        }
        Ok(file)
    };
    let files = shares.iter().map(open).collect::<Result<_, _>>()?;
    let users = users.filter(|_| shares.iter().any(|share| share.id_mapped));
    let user_namespace = users.map(IdMaps::namespace).transpose().map_err(StorageError::UserNamespace)?;
    Ok(OpenShares { files, user_namespace })
}

/// Mounts on the host; dropping it takes them down, the last first.
#[derive(Debug, Default)]
pub struct HostMounts {
    points: Vec<PathBuf>,
}

impl HostMounts {
    /// Makes the mounts of a directory root, where it has any.
    ///
    /// # Errors
    /// See [`StorageError`]. What was mounted until then is taken down.
    pub fn make(plan: &Plan) -> Result<Self, StorageError> {
        let mut made = Self::default();
        if let RootfsPlan::Directory { path, mounts, .. } = &plan.rootfs {
            if !mounts.is_empty() {
                let failed =
                    |source| StorageError::Mount { kind: "nothing".into(), path: path.clone(), source };
                std::fs::create_dir_all(path).map_err(failed)?;
            }
            for wanted in mounts {
                mount_one(wanted, path)?;
                made.points.push(path.clone());
            }
            // The first share is the root's.
            if plan.shares.first().is_some_and(|root| root.read_only) {
                mount_points::make(path, &plan.mount_points)
                    .map_err(|(path, errno)| StorageError::MountPoint { path, source: errno.into() })?;
            }
        }
        Ok(made)
    }

    /// The mount points that [`Self::make`] will use, for the record on disk.
    pub fn points_of(plan: &Plan) -> Vec<PathBuf> {
        match &plan.rootfs {
            RootfsPlan::Directory { path, mounts, .. } => mounts.iter().map(|_| path.clone()).collect(),
            RootfsPlan::Layers { .. } | RootfsPlan::Disk { .. } | RootfsPlan::None => Vec::new(),
        }
    }

    /// Takes them down, and tells where they were.
    pub fn into_points(mut self) -> Vec<PathBuf> {
        let points = std::mem::take(&mut self.points);
        take_down(&points);
        points
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.points.len()
    }
}

impl Drop for HostMounts {
    fn drop(&mut self) {
        take_down(&self.points);
    }
}

/// Takes mounts down, the last first; never through a symbolic link (H05).
pub fn take_down(points: &[PathBuf]) {
    for point in points.iter().rev() {
        let plain = unmount(point, UnmountFlags::NOFOLLOW);
        if plain == Err(rustix::io::Errno::BUSY) {
            let _ = unmount(point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
        }
    }
}

fn mount_one(wanted: &Mount, point: &Path) -> Result<(), StorageError> {
    let failed = |error: rustix::io::Errno| StorageError::Mount {
        kind: wanted.kind.clone(),
        path: point.to_owned(),
        source: error.into(),
    };
    let (flags, data) = split_options(&wanted.options);
    let users = IdMaps::from_options(&wanted.options)?;
    let users = users.map(|maps| maps.namespace()).transpose().map_err(StorageError::UserNamespace)?;
    let mapped =
        |source: io::Error| StorageError::Mount { kind: wanted.kind.clone(), path: point.to_owned(), source };
    if wanted.kind == "bind" {
        let recursive = wanted.options.iter().any(|option| option == "rbind");
        match &users {
            Some(users) => users::mounts::bind(Path::new(&wanted.source), point, users).map_err(mapped)?,
            None if recursive => mount_bind_recursive(&wanted.source, point).map_err(failed)?,
            None => mount_bind(&wanted.source, point).map_err(failed)?,
        }
        if !flags.is_empty()
            && let Err(error) = mount_remount(point, MountFlags::BIND | flags, "")
        {
            take_down(&[point.to_owned()]);
            return Err(failed(error));
        }
        return Ok(());
    }
    if let Some(users) = &users {
        return users::mounts::overlay(point, flags, &data, users).map_err(mapped);
    }
    let text = data.join(",");
    if text.len() > MAX_MOUNT_DATA {
        // containerd's own path takes 75 bytes of each layer's.
        return match lowers::relative(&data) {
            Some(relative) if relative.data.len() <= MAX_MOUNT_DATA => {
                lowers::mount_at(&wanted.source, point, &wanted.kind, flags, &relative).map_err(mapped)
            }
            _ => Err(StorageError::LongOptions(text.len())),
        };
    }
    let data = CString::new(text).map_err(|_| failed(rustix::io::Errno::INVAL))?;
    mount(&*wanted.source, point, &*wanted.kind, flags, Some(data.as_c_str())).map_err(failed)
}

/// Options that are flags of mount(2), and the rest as the file system takes it.
fn split_options(options: &[String]) -> (MountFlags, Vec<&str>) {
    let mut flags = MountFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" => flags -= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "bind" | "rbind" | "defaults" | "" => {}
            other if users::is_option(other) => {}
            other => data.push(other),
        }
    }
    (flags, data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocol::fs::Submounts;

    fn blob(dir: &Path, name: &str, blocks: usize) -> PathBuf {
        let mut bytes = vec![0; blocks * 4096];
        bytes[1024..1028].copy_from_slice(&EROFS_MAGIC);
        std::fs::write(dir.join(name), bytes).unwrap();
        dir.join(name)
    }

    #[test]
    fn blobs_lie_end_to_end_on_one_read_only_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = open_layers("rootfs", &[blob(dir.path(), "a", 1), blob(dir.path(), "b", 3)]).unwrap();
        assert_eq!(disk.layers, [(0, 4096), (4096, 12288)]);
        assert!(disk.disk.read_only);
        assert_eq!(disk.disk.extents.len(), 2);
    }

    #[test]
    fn file_that_is_no_erofs_image_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [("short", vec![0; 100]), ("other", vec![0; 4096])] {
            std::fs::write(dir.path().join(name), bytes).unwrap();
            let error = open_layers("rootfs", &[dir.path().join(name)]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("not an EROFS image"), "{error}");
        }
        let odd = blob(dir.path(), "odd", 1);
        File::options().write(true).open(&odd).unwrap().set_len(4097).unwrap();
        assert!(matches!(open_layers("rootfs", &[odd]), Err(StorageError::NotErofs { .. })));
    }

    #[test]
    fn missing_bind_source_is_named() {
        let share = Share {
            name: "m0".into(),
            source: "/nonexistent/dir".into(),
            read_only: false,
            submounts: Submounts::AsShare,
            id_mapped: false,
        };
        let error = open_shares(&[share], None).unwrap_err().to_string();
        assert_eq!(error, "cannot open /nonexistent/dir, which is mounted into the container");
    }

    #[test]
    fn f02_kernel_tree_behind_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (number, tree) in ["/proc/sys", "/sys/kernel", "/proc/self/ns/net"].iter().enumerate() {
            let link = dir.path().join(number.to_string());
            std::os::unix::fs::symlink(tree, &link).unwrap();
            let submounts = Submounts::AsShare;
            let share =
                Share { name: "m0".into(), source: link, read_only: false, submounts, id_mapped: false };
            let error = open_shares(&[share], None).unwrap_err().to_string();
            assert!(error.contains("belongs to the host's kernel"), "{tree}: {error}");
        }
        let share = Share {
            name: "m0".into(),
            source: dir.path().into(),
            read_only: false,
            submounts: Submounts::AsShare,
            id_mapped: false,
        };
        open_shares(&[share], None).unwrap();
    }

    #[test]
    fn options_are_flags_or_data() {
        let options = ["ro", "nosuid", "lowerdir=/a:/b", "xino=off"].map(str::to_owned);
        let (flags, data) = split_options(&options);
        assert_eq!(flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(data, ["lowerdir=/a:/b", "xino=off"]);
    }

    #[test]
    fn overlay_of_a_hundred_layers_with_long_paths_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let below =
            dir.path().join("io.containerd.snapshotter.v1.overlayfs/snapshots/with/a/long/path/before/them");
        let mut lowers = Vec::new();
        for number in 0..100 {
            let layer = below.join(format!("{number}/fs"));
            std::fs::create_dir_all(&layer).unwrap();
            std::fs::write(layer.join(format!("file{number}")), "").unwrap();
            lowers.push(layer.display().to_string());
        }
        let point = dir.path().join("point");
        std::fs::create_dir(&point).unwrap();
        let wanted = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![format!("lowerdir={}", lowers.join(":"))],
        };
        if mount("tmpfs", &point, "tmpfs", MountFlags::empty(), None).is_err() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        unmount(&point, UnmountFlags::empty()).unwrap();
        let before = std::env::current_dir().unwrap();
        mount_one(&wanted, &point).unwrap();
        let files = std::fs::read_dir(&point).unwrap().count();
        unmount(&point, UnmountFlags::empty()).unwrap();
        assert_eq!(files, 100);
        assert_eq!(std::env::current_dir().unwrap(), before);
    }

    #[test]
    fn h05_unmount_does_not_follow_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::create_dir(&target).unwrap();
        if mount("tmpfs", &target, "tmpfs", MountFlags::empty(), None).is_err() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        std::fs::write(target.join("canary"), "").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        take_down(&[link]);
        assert!(target.join("canary").exists());
        take_down(std::slice::from_ref(&target));
        assert!(!target.join("canary").exists());
    }
}
