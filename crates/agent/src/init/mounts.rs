//! The guest's own mounts: few, and none that a container sees.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_remount, move_mount, open_tree};

/// cgroup v2.
pub(super) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Root file systems and mount points of containers; on the tmpfs of /run.
pub(super) const STATE_DIR: &str = "/run/nacre/containers";

/// A step of the boot that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {path}")]
pub struct MountError {
    step: &'static str,
    path: &'static str,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(step: &'static str, path: &'static str) -> impl FnOnce(E) -> MountError {
    move |source| MountError { step, path, source: source.into() }
}

/// Makes a read-only bind mount of the initramfs the root directory.
///
/// Two reasons. pivot_root(2) refuses a process whose root is the first mount of all (rootfs), and every container
/// needs pivot_root. And children of the agent are executed from a mount that is read-only, so that a container
/// which gets hold of its own /proc/self/exe cannot write to the agent (C02).
pub(super) fn enter_read_only_root() -> Result<(), MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = open_tree(CWD, "/", flags).map_err(failed("clone", "/"))?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(failed("bind", "/"))?;
    rustix::process::fchdir(&root).map_err(failed("enter", "/"))?;
    rustix::process::chroot(".").map_err(failed("change root to", "/"))?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID;
    mount_remount("/", flags, "").map_err(failed("make read-only", "/"))
}

/// Mounts proc, sysfs, devtmpfs, the tmpfs of /run, and cgroup v2 with all its controllers for its children.
pub(super) fn mount_all() -> Result<(), MountError> {
    let closed = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_one("proc", "/proc", closed, None)?;
    mount_one("sysfs", "/sys", closed, None)?;
    mount_one("devtmpfs", "/dev", MountFlags::NOSUID | MountFlags::NOEXEC, Some(c"mode=0755"))?;
    mount_one("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=0755"))?;
    mount_one("cgroup2", CGROUP_ROOT, closed, Some(c"nsdelegate,memory_recursiveprot"))?;
    enable_controllers()
}

fn mount_one(
    fs_type: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: Option<&std::ffi::CStr>,
) -> Result<(), MountError> {
    mount(fs_type, target, fs_type, flags, options).map_err(failed("mount", target))
}

fn enable_controllers() -> Result<(), MountError> {
    let available = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .map_err(failed("read controllers of", CGROUP_ROOT))?;
    let enable: Vec<String> = available.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", enable.join(" "))
        .map_err(failed("enable controllers of", CGROUP_ROOT))
}

/// Makes the directories of [`STATE_DIR`], closed to all but root.
pub(super) fn make_state_directories() -> Result<(), MountError> {
    for path in ["/run/nacre", STATE_DIR] {
        fs::create_dir(path).map_err(failed("make", path))?;
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed("close", path))?;
    }
    Ok(())
}
