//! Shares that come and go while a guest uses the server.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use fuse_backend_rs::abi::fuse_abi::{AttrOut, GetattrIn, Opcode, ROOT_ID};
use nacre_protocol::control::FailureKind;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use vm_memory_fs::ByteValued as _;

use crate::guest::{Guest, object};

fn directory(content: &str) -> (tempfile::TempDir, File) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), content).unwrap();
    let file = File::open(dir.path()).unwrap();
    (dir, file)
}

fn read(guest: &mut Guest, share: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
    let share = guest.lookup(ROOT_ID, share)?;
    let node = guest.lookup(share, name)?;
    let handle = guest.open(node, libc::O_RDONLY)?;
    guest.read(node, handle, 0, 100)
}

fn mounts_of(guest: &Guest) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", guest.server.child.id())).unwrap();
    table.lines().map(str::to_owned).collect()
}

#[test]
fn share_that_comes_later_is_served_beside_the_first() {
    let ((first, _), (_second, file)) = (directory("first"), directory("second"));
    let mut guest = Guest::mount(first.path(), false);
    assert_eq!(guest.lookup(ROOT_ID, b"t\0"), Err(Errno::ENOENT));
    assert_eq!(guest.server.change(&[("t", &file, false)], &[]), Ok(()));
    assert_eq!(read(&mut guest, b"t\0", b"f\0").unwrap(), b"second");
    assert_eq!(read(&mut guest, b"s\0", b"f\0").unwrap(), b"first");
    let share = guest.lookup(ROOT_ID, b"t\0").unwrap();
    guest.create(share, b"new\0").unwrap();
    assert!(_second.path().join("new").exists());
}

#[test]
fn f10_later_share_is_read_only_where_asked() {
    let ((first, _), (_second, file)) = (directory("first"), directory("second"));
    let mut guest = Guest::mount(first.path(), false);
    assert_eq!(guest.server.change(&[("t", &file, true)], &[]), Ok(()));
    let share = guest.lookup(ROOT_ID, b"t\0").unwrap();
    assert_eq!(guest.create(share, b"new\0"), Err(Errno::EROFS));
    let line = mounts_of(&guest).into_iter().find(|line| line.contains(" /shares/t ")).unwrap();
    assert!(line.contains(" ro,nosuid,nodev"), "{line}");
}

#[test]
fn single_file_can_come_later() {
    let ((first, _), (second, _)) = (directory("first"), directory("second"));
    let mut guest = Guest::mount(first.path(), false);
    let file = File::open(second.path().join("f")).unwrap();
    assert_eq!(guest.server.change(&[("t", &file, true)], &[]), Ok(()));
    let node = guest.lookup(ROOT_ID, b"t\0").unwrap();
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, handle, 0, 100).unwrap(), b"second");
    assert_eq!(guest.server.change(&[], &["t"]), Ok(()));
    assert_eq!(guest.lookup(ROOT_ID, b"t\0"), Err(Errno::ENOENT));
}

#[test]
fn share_that_goes_leaves_no_mount_and_its_name_is_free() {
    let ((first, _), (second, file)) = (directory("first"), directory("second"));
    let mut guest = Guest::mount(first.path(), false);
    let before = mounts_of(&guest).len();
    for _ in 0..3 {
        assert_eq!(guest.server.change(&[("t", &file, false)], &[]), Ok(()));
        assert_eq!(read(&mut guest, b"t\0", b"f\0").unwrap(), b"second");
        assert_eq!(guest.server.change(&[], &["t", "never-there"]), Ok(()));
        assert_eq!(guest.lookup(ROOT_ID, b"t\0"), Err(Errno::ENOENT));
        assert_eq!(mounts_of(&guest).len(), before);
    }
    assert!(second.path().join("f").exists(), "what was shared stays");
}

#[test]
fn name_that_is_taken_is_refused_and_the_first_stays() {
    let ((first, _), (_second, file)) = (directory("first"), directory("second"));
    let mut guest = Guest::mount(first.path(), false);
    let failure = guest.server.change(&[("s", &file, false)], &[]).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Jail);
    assert_eq!(read(&mut guest, b"s\0", b"f\0").unwrap(), b"first");
}

#[test]
fn f02_kernel_trees_below_a_later_share_are_not_served() {
    let ((first, _), (second, _)) = (directory("first"), directory("second"));
    // Of this thread alone.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&Path> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let proc = second.path().join("proc");
    fs::create_dir(&proc).unwrap();
    mount(Some("proc"), &proc, Some("proc"), MsFlags::empty(), none).unwrap();
    // What lies on top of it does not keep it.
    mount(Some("tmpfs"), &proc, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let mut guest = Guest::mount(first.path(), false);
    let file = File::open(second.path()).unwrap();
    assert_eq!(guest.server.change(&[("t", &file, false)], &[]), Ok(()));
    let share = guest.lookup(ROOT_ID, b"t\0").unwrap();
    let proc = guest.lookup(share, b"proc\0").unwrap();
    assert_eq!(guest.lookup(proc, b"self\0"), Err(Errno::ENOENT));
    assert!(!mounts_of(&guest).iter().any(|line| line.contains("/shares/t/proc")));
}

/// A user namespace in which `size` ids from 0 on are those of the host from `first` on.
fn user_namespace(first: u32, size: u32) -> File {
    let mut holder = Command::new("unshare").args(["--user", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    let path = format!("/proc/{}/ns/user", holder.id());
    while fs::read_link(&path).unwrap() == own {
        std::thread::yield_now();
    }
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", holder.id()), format!("0 {first} {size}\n")).unwrap();
    }
    let file = File::open(path).unwrap();
    drop(holder.stdin.take());
    holder.wait().unwrap();
    file
}

#[test]
fn f06_ids_of_a_share_are_those_of_its_user_namespace() {
    let ((first, _), (second, file)) = (directory("first"), directory("second"));
    chown(second.path().join("f"), Some(7), Some(8)).unwrap();
    let mut guest = Guest::mount(first.path(), false);
    assert_eq!(guest.server.add_mapped("t", &file, &user_namespace(100_000, 65_536)), Ok(()));
    let share = guest.lookup(ROOT_ID, b"t\0").unwrap();
    let node = guest.lookup(share, b"f\0").unwrap();
    let reply = guest.call(Opcode::Getattr, node, &[GetattrIn::default().as_slice()]).unwrap();
    let AttrOut { attr, .. } = object(&reply);
    assert_eq!((attr.uid, attr.gid), (100_007, 100_008));
    guest.caller = 100_005;
    guest.create(share, b"new\0").unwrap();
    let made = fs::metadata(second.path().join("new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (5, 5));
    // An id that the namespace does not have owns nothing here, that of the host's root least of all.
    for stranger in [0, 5, 99_999, 165_536] {
        guest.caller = stranger;
        assert_eq!(guest.create(share, b"strange\0"), Err(Errno::EOVERFLOW), "{stranger}");
    }
    // The other shares are as they were.
    guest.caller = 100_005;
    guest.create(guest.share, b"new\0").unwrap();
    assert_eq!(fs::metadata(first.path().join("new")).unwrap().uid(), 100_005);
}

#[test]
fn user_namespace_that_is_none_is_refused() {
    let ((first, _), (_second, file)) = (directory("first"), directory("second"));
    let guest = Guest::mount(first.path(), false);
    let failure = guest.server.add_mapped("t", &file, &file).unwrap_err();
    assert!(failure.message.contains("ids of share \"t\" cannot be mapped"), "{}", failure.message);
}
