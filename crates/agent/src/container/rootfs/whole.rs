//! A file system that is alone on its disk: a snapshot of a block snapshotter.

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use super::disk::Disk;
use super::{Prepared, RootfsError, Teardown};

const KIND: &str = "ext4";

pub(super) fn prepare(disk_id: &str, read_only: bool) -> Result<Prepared, RootfsError> {
    let disk = Disk::wait_for(disk_id)?;
    let node = disk.node();
    let error = |source: Errno| RootfsError::Mount { kind: KIND, what: node.display().to_string(), source };
    let context = fsopen(KIND, FsOpenFlags::FSOPEN_CLOEXEC).map_err(error)?;
    fsconfig_set_string(&context, "source", &node).map_err(error)?;
    let mut attributes = MountAttrFlags::empty();
    if read_only {
        // A journal that was not written back cannot be, on a device that refuses.
        fsconfig_set_flag(&context, "ro")
            .and_then(|()| fsconfig_set_flag(&context, "noload"))
            .map_err(error)?;
        attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsconfig_create(&context).map_err(error)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(error)?;
    Ok(Prepared { mount, teardown: Teardown { disks: vec![disk], ..Teardown::default() } })
}
