//! Shares that come and go while a server runs.
//!
//! The server itself has given up the right to mount. This process takes copies of the shares' mounts where it was
//! started, enters the server's mount namespace, and there puts each of them through what the first ones went through
//! ([`crate::jail`]) before the guest can reach it: on a directory beside the served one, the host kernel's file systems below it
//! are taken away; then it is moved to its name.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nacre_protocol::id::ContainerId;
use nix::mount::{MntFlags, umount2};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::jail::{JailError, SHARES, STAGING, Tree, remove_listed_kernel_trees, step};
use crate::start::ShareFile;
use crate::sys;

/// Longest table of mounts that is read.
const MAX_TABLE: u64 = 16 << 20;

/// Changes what the server with this pidfd serves.
pub(crate) fn change(server: &OwnedFd, add: Vec<ShareFile>, remove: &[ContainerId]) -> Result<(), JailError> {
    let trees: Vec<Tree> = add.into_iter().map(Tree::take).collect::<Result<_, _>>()?;
    // Opened before: the server's namespace has a /proc of its own, in which this process is not.
    let own = step("proc", File::open("/proc/self"))?;
    let entered = move_into_thread_name_spaces(server.as_fd(), ThreadNameSpaceType::MOUNT);
    step("enter the server", entered)?;

    // The server's root is mounted read-only; a copy of the mount, seen by nobody else, is not.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root = step("root", open_tree(CWD, "/", flags))?;
    step("root", sys::make_writable(&root))?;
    let dir = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let shares = step("shares", openat(&root, SHARES.trim_start_matches('/'), dir, Mode::empty()))?;

    for name in remove {
        take_away(&shares, name.as_str())?;
    }
    for tree in &trees {
        let kind = if tree.is_dir { Kind::Directory } else { Kind::File };
        let staged = Point::make(&root, Path::new(STAGING), &tree.name, kind)?;
        step("stage", attach(tree, &staged.path))?;
        remove_listed_kernel_trees(&mount_table(&own)?, Path::new(STAGING))?;
        let served = Path::new(SHARES).join(&tree.name);
        step("entry", make_entry(&shares, &tree.name, kind))?;
        let moved = move_mount(CWD, &staged.path, CWD, &served, MoveMountFlags::empty());
        if let Err(error) = moved {
            take_away(&shares, &tree.name)?;
            return Err(JailError::Share { name: tree.name.clone(), source: error.into() });
        }
    }
    Ok(())
}

/// The kind of an entry: that of the share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

/// A mount point in the staging directory. Dropping it takes the mount, where there still is one, and the point away.
struct Point {
    dir: OwnedFd,
    name: String,
    path: PathBuf,
    kind: Kind,
}

impl Point {
    fn make(root: &OwnedFd, dir: &Path, name: &str, kind: Kind) -> Result<Self, JailError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let relative = dir.strip_prefix("/").unwrap_or(dir);
        let fd = step("staging", openat(root, relative, flags, Mode::empty()))?;
        step("staging", make_entry(&fd, name, kind))?;
        Ok(Self { dir: fd, name: name.to_owned(), path: dir.join(name), kind })
    }
}

impl Drop for Point {
    fn drop(&mut self) {
        // After the move nothing is mounted here.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        let flags = if self.kind == Kind::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let _ = unlinkat(&self.dir, &self.name, flags);
    }
}

fn make_entry(dir: &OwnedFd, name: &str, kind: Kind) -> rustix::io::Result<()> {
    match kind {
        Kind::Directory => mkdirat(dir, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            openat(dir, name, flags, Mode::from_raw_mode(0o600)).map(drop)
        }
    }
}

fn attach(tree: &Tree, path: &Path) -> rustix::io::Result<()> {
    move_mount(&tree.mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Takes an entry away. `shares` is the directory in the writable copy, in which nothing is mounted.
fn take_away(shares: &OwnedFd, name: &str) -> Result<(), JailError> {
    let failed = |errno: Errno| JailError::Share { name: name.to_owned(), source: errno.into() };
    match umount2(&Path::new(SHARES).join(name), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(JailError::Share { name: name.to_owned(), source: errno.into() }),
    }
    match unlinkat(shares, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTDIR) => unlinkat(shares, name, AtFlags::empty()).map_err(failed),
        Err(Errno::NOENT) => Ok(()),
        other => other.map_err(failed),
    }
}

fn mount_table(own: &File) -> Result<String, JailError> {
    let table = openat(own.as_fd(), "mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut text = String::new();
    step("mountinfo", File::from(step("mountinfo", table)?).take(MAX_TABLE).read_to_string(&mut text))?;
    Ok(text)
}
