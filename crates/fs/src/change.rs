//! Shares that come and go while a server runs.
//!
//! The server itself has given up the right to mount. This process puts copies of the shares' mounts through what the
//! first ones went through ([`crate::jail`]), in a mount namespace of its own; then it enters the server's and moves each to
//! its name there. Until then neither the guest nor the server can reach any of them.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nacre_protocol::id::ContainerId;
use nix::mount::{MntFlags, umount2};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::jail::{JailError, SHARES, Tree, prepare_apart, step};
use crate::start::ShareFile;
use crate::sys;

/// Changes what the server with this pidfd serves.
pub(crate) fn change(server: &OwnedFd, add: Vec<ShareFile>, remove: &[ContainerId]) -> Result<(), JailError> {
    let trees = prepare_apart(add)?;
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
        step("entry", make_entry(&shares, tree))?;
        let served = Path::new(SHARES).join(&tree.name);
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        if let Err(error) = move_mount(&tree.mount, "", CWD, &served, flags) {
            take_away(&shares, &tree.name)?;
            return Err(JailError::Share { name: tree.name.clone(), source: error.into() });
        }
    }
    Ok(())
}

fn make_entry(dir: &OwnedFd, tree: &Tree) -> rustix::io::Result<()> {
    if tree.is_dir {
        return mkdirat(dir, &tree.name, Mode::from_raw_mode(0o755));
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    openat(dir, &tree.name, flags, Mode::from_raw_mode(0o600)).map(drop)
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
