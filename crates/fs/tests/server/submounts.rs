//! What is mounted below a share: when it is made, and later.

use std::fs::{self, File};
use std::path::Path;

use fuse_backend_rs::abi::fuse_abi::{Opcode, ROOT_ID, ReadIn};
use nacre_protocol::fs::Submounts;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use vm_memory_fs::ByteValued as _;

use crate::guest::Guest;

const NONE: Option<&Path> = None;

/// A directory that is a mount of its own, shared with whoever follows it, in a mount namespace of this thread's own.
fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
    tmpfs(dir.path());
    mount(NONE, dir.path(), NONE, MsFlags::MS_SHARED, NONE).unwrap();
    for name in ["sub", "later"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    tmpfs(&dir.path().join("sub"));
    dir
}

fn tmpfs(path: &Path) {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
}

#[test]
fn f10_read_only_share_is_read_only_with_all_below_it() {
    let host = host();
    let mut guest = Guest::mount_with(host.path(), true, Submounts::AsShare);
    let sub = guest.lookup(guest.share, b"sub\0").unwrap();
    assert_eq!(guest.create(guest.share, b"new\0"), Err(Errno::EROFS));
    assert_eq!(guest.create(sub, b"new\0"), Err(Errno::EROFS));
}

#[test]
fn mount_below_a_read_only_share_is_written_where_that_is_asked() {
    let host = host();
    for submounts in [Submounts::AsHost, Submounts::Following] {
        let mut guest = Guest::mount_with(host.path(), true, submounts);
        let sub = guest.lookup(guest.share, b"sub\0").unwrap();
        assert_eq!(guest.create(guest.share, b"new\0"), Err(Errno::EROFS), "{submounts:?}");
        guest.create(sub, b"new\0").unwrap();
        fs::remove_file(host.path().join("sub/new")).unwrap();
    }
}

#[test]
fn what_is_mounted_later_is_seen_by_a_share_that_follows_and_by_no_other() {
    for (submounts, is_seen) in
        [(Submounts::AsShare, false), (Submounts::AsHost, false), (Submounts::Following, true)]
    {
        let host = host();
        let mut guest = Guest::mount_with(host.path(), false, submounts);
        let later = host.path().join("later");
        tmpfs(&later);
        fs::write(later.join("f"), "later").unwrap();
        let node = guest.lookup(guest.share, b"later\0").unwrap();
        assert_eq!(guest.lookup(node, b"f\0").is_ok(), is_seen, "{submounts:?}");
        umount2(&later, MntFlags::MNT_DETACH).unwrap();
        let node = guest.lookup(guest.share, b"later\0").unwrap();
        assert_eq!(guest.lookup(node, b"f\0"), Err(Errno::ENOENT));
    }
}

#[test]
fn share_that_comes_later_follows_too() {
    let (host, first) = (host(), tempfile::tempdir().unwrap());
    let mut guest = Guest::mount(first.path(), false);
    let file = File::open(host.path()).unwrap();
    assert_eq!(guest.server.change_with(&[("t", &file, false)], Submounts::Following, &[]), Ok(()));
    let share = guest.lookup(ROOT_ID, b"t\0").unwrap();
    tmpfs(&host.path().join("later"));
    fs::write(host.path().join("later/f"), "later").unwrap();
    let later = guest.lookup(share, b"later\0").unwrap();
    guest.lookup(later, b"f\0").unwrap();
}

#[test]
fn f02_kernel_tree_that_is_mounted_later_is_not_entered() {
    let host = host();
    let mut guest = Guest::mount_with(host.path(), false, Submounts::Following);
    let later = guest.lookup(guest.share, b"later\0").unwrap();
    mount(Some("proc"), &host.path().join("later"), Some("proc"), MsFlags::empty(), NONE).unwrap();
    assert_eq!(guest.lookup(guest.share, b"later\0"), Err(Errno::EACCES));
    // What was below it is all that a node from before leads to.
    assert_eq!(guest.lookup(later, b"self\0"), Err(Errno::ENOENT));

    let directory = guest.open_directory(guest.share).unwrap();
    let read = ReadIn { fh: directory, size: 4096, ..ReadIn::default() };
    let listed = guest.call(Opcode::Readdirplus, guest.share, &[read.as_slice()]).unwrap();
    let at = listed.windows(5).position(|name| name == b"later").unwrap();
    // `fuse_direntplus`: an entry, whose first field is the node id, then ino, off, namelen, type and the name.
    let entry = at - size_of::<fuse_backend_rs::abi::fuse_abi::Direntplus>();
    assert_eq!(listed[entry..entry + 8], [0; 8], "no node for it");

    umount2(&host.path().join("later"), MntFlags::MNT_DETACH).unwrap();
    guest.lookup(guest.share, b"later\0").unwrap();
}
