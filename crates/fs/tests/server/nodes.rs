//! Node ids, handles, and what they stand for.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fuse_backend_rs::abi::fuse_abi::{
    BatchForgetIn, EntryOut, FallocateIn, ForgetIn, ForgetOne, GetattrIn, GetxattrIn, InHeader, LinkIn, LkIn,
    LseekIn, MknodIn, Opcode, OpenIn, ReadIn, ReleaseIn, SetattrIn, WriteIn,
};
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use vm_memory_fs::ByteValued;

use crate::guest::{Guest, ROOM, object, snapshot};

fn mount() -> (tempfile::TempDir, Guest) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("file"), "inside").unwrap();
    std::fs::write(dir.path().join("other"), "other").unwrap();
    let guest = Guest::mount(dir.path(), false);
    (dir, guest)
}

/// A request about a node, one of each that takes a node and no name.
fn about_nodes(fh: u64) -> Vec<(Opcode, Vec<u8>)> {
    let read = ReadIn { fh, size: 100, ..ReadIn::default() };
    let write = WriteIn { fh, size: 1, flags: 2, ..WriteIn::default() };
    vec![
        (Opcode::Getattr, GetattrIn { flags: 1, dummy: 0, fh }.as_slice().to_vec()),
        (
            Opcode::Setattr,
            SetattrIn { valid: 1 | 1 << 6, fh, mode: 0o777, ..SetattrIn::default() }.as_slice().to_vec(),
        ),
        (Opcode::Read, read.as_slice().to_vec()),
        (Opcode::Write, [write.as_slice(), b"x"].concat()),
        (Opcode::Release, ReleaseIn { fh, ..ReleaseIn::default() }.as_slice().to_vec()),
        (Opcode::Flush, [fh.to_le_bytes(), [0; 8], [0; 8]].concat()),
        (Opcode::Fsync, [fh.to_le_bytes(), [0; 8]].concat()),
        (Opcode::Readdir, read.as_slice().to_vec()),
        (Opcode::Readdirplus, read.as_slice().to_vec()),
        (Opcode::Releasedir, ReleaseIn { fh, ..ReleaseIn::default() }.as_slice().to_vec()),
        (Opcode::Fsyncdir, [fh.to_le_bytes(), [0; 8]].concat()),
        (Opcode::Fallocate, FallocateIn { fh, length: 1, ..FallocateIn::default() }.as_slice().to_vec()),
        (Opcode::Lseek, LseekIn { fh, ..LseekIn::default() }.as_slice().to_vec()),
    ]
}

#[test]
fn f07_node_that_was_never_given_out_is_refused() {
    let (dir, mut guest) = mount();
    let before = snapshot(dir.path());
    for node in [0, 2, 12_345, 1 << 47, 1 << 56, u64::MAX] {
        let requests = about_nodes(1).into_iter().chain([
            (Opcode::Open, OpenIn::default().as_slice().to_vec()),
            (Opcode::Opendir, OpenIn::default().as_slice().to_vec()),
            (Opcode::Readlink, vec![]),
            (Opcode::Lookup, b"file\0".to_vec()),
            (Opcode::Unlink, b"file\0".to_vec()),
            (Opcode::Statfs, vec![]),
            (Opcode::Access, vec![0; 8]),
            (Opcode::Getxattr, [[0; 8].as_slice(), b"user.a\0"].concat()),
            (Opcode::Listxattr, vec![0; 8]),
        ]);
        for (opcode, body) in requests {
            assert_eq!(guest.call(opcode, node, &[&body]), Err(Errno::EBADF), "{opcode:?} of {node}");
        }
        let link = LinkIn { oldnodeid: node };
        assert_eq!(guest.call(Opcode::Link, guest.share, &[link.as_slice(), b"n\0"]), Err(Errno::EBADF));
        let rename = node.to_le_bytes();
        let renamed = guest.call(Opcode::Rename, guest.share, &[&rename, b"file\0", b"n\0"]);
        assert_eq!(renamed, Err(Errno::EBADF));
    }
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn handle_of_another_file_is_refused() {
    let (dir, mut guest) = mount();
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    let other = guest.lookup(guest.share, b"other\0").unwrap();
    let theirs = guest.open(other, libc::O_RDWR).unwrap();
    let before = snapshot(dir.path());
    for fh in [theirs, 0, theirs + 1, u64::MAX] {
        for (opcode, body) in about_nodes(fh) {
            assert_eq!(guest.call(opcode, file, &[&body]), Err(Errno::EBADF), "{opcode:?} with {fh}");
        }
    }
    assert_eq!(snapshot(dir.path()), before);
    assert_eq!(guest.read(other, theirs, 0, 100).unwrap(), b"other");
}

#[test]
fn f07_forgetting_too_much_forgets_no_more_than_there_is() {
    let (_dir, mut guest) = mount();
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    let fh = guest.open(file, libc::O_RDONLY).unwrap();
    guest.tell(Opcode::Forget, file, &[ForgetIn { nlookup: u64::MAX }.as_slice()]);
    // What is open stays open, and the name gives the node anew.
    assert_eq!(guest.read(file, fh, 0, 100).unwrap(), b"inside");
    let again = guest.lookup(guest.share, b"file\0").unwrap();
    assert_eq!(guest.open(again, libc::O_RDONLY).map(|_| ()), Ok(()));
}

#[test]
fn f07_roots_outlive_being_forgotten() {
    let (_dir, mut guest) = mount();
    for node in [1, 0, 99, u64::MAX] {
        guest.tell(Opcode::Forget, node, &[ForgetIn { nlookup: u64::MAX }.as_slice()]);
    }
    assert_eq!(guest.lookup(1, b"s\0"), Ok(guest.share));
}

#[test]
fn f07_batch_of_none_of_too_many_and_of_strangers_is_survived() {
    let (_dir, mut guest) = mount();
    let one = ForgetOne { nodeid: 4711, nlookup: u64::MAX };
    guest.tell(Opcode::BatchForget, 0, &[BatchForgetIn { count: 0, dummy: 0 }.as_slice()]);
    guest.tell(Opcode::BatchForget, 0, &[BatchForgetIn { count: 1, dummy: 0 }.as_slice(), one.as_slice()]);
    guest.tell(
        Opcode::BatchForget,
        0,
        &[BatchForgetIn { count: 60_000, dummy: 0 }.as_slice(), one.as_slice()],
    );
    guest.tell(Opcode::BatchForget, 0, &[BatchForgetIn { count: u32::MAX, dummy: 0 }.as_slice()]);
    assert_eq!(guest.lookup(1, b"s\0"), Ok(guest.share));
}

#[test]
fn f04_device_nodes_are_not_made() {
    let (dir, mut guest) = mount();
    let before = snapshot(dir.path());
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFLNK, libc::S_IFDIR, libc::S_IFMT] {
        for rdev in [0, 0x103, u32::MAX] {
            let node = MknodIn { mode: kind | 0o666, rdev, umask: 0, padding: 0 };
            let made = guest.call(Opcode::Mknod, guest.share, &[node.as_slice(), b"node\0"]);
            assert_eq!(made, Err(Errno::EPERM), "{kind:o} {rdev:#x}");
        }
    }
    let whiteout = [guest.share.to_le_bytes(), [libc::RENAME_WHITEOUT as u8, 0, 0, 0, 0, 0, 0, 0]].concat();
    let renamed = guest.call(Opcode::Rename2, guest.share, &[&whiteout, b"file\0", b"new\0"]);
    assert_eq!(renamed, Err(Errno::EINVAL));
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn f04_devices_pipes_and_sockets_of_the_host_are_not_opened() {
    let (dir, mut guest) = mount();
    let path = |name: &str| dir.path().join(name);
    mknod(&path("zero"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap();
    nix::unistd::mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    let names: [&[u8]; 3] = [b"zero\0", b"pipe\0", b"socket\0"];
    for name in names {
        let node = guest.lookup(guest.share, name).unwrap();
        assert_eq!(guest.open(node, libc::O_RDONLY), Err(Errno::EBADF), "{name:?}");
        assert_eq!(guest.create(guest.share, name), Err(Errno::EBADF), "{name:?}");
    }
}

/// A directory of this mode, of root and a group of its own, in which user and group 1000 make a file: its owner, group and mode.
fn made_in_a_group_directory(directory: u32, file: u32) -> (u32, u32, u32) {
    let (dir, mut guest) = mount();
    let sub = dir.path().join("sub");
    std::os::unix::fs::chown(&sub, Some(0), Some(4242)).unwrap();
    std::fs::set_permissions(&sub, std::os::unix::fs::PermissionsExt::from_mode(directory)).unwrap();
    let node = guest.lookup(guest.share, b"sub\0").unwrap();
    let create = [2_u32, file, 0, 0].map(u32::to_le_bytes).concat();
    let mut request = guest.message(Opcode::Create as u32, node, size_of::<InHeader>() + 18, &create);
    request.extend(b"f\0");
    // The header's user and group are its bytes 24 to 32.
    request[24..32].copy_from_slice(&[1000_u32, 1000].map(u32::to_le_bytes).concat());
    let reply = guest.exchange(&request, ROOM);
    guest.read_reply(&reply).unwrap();
    let made = sub.join("f").metadata().unwrap();
    (made.uid(), made.gid(), made.mode() & 0o7777)
}

#[test]
fn f06_group_of_a_directory_gives_no_set_gid_file() {
    // The user is not in the group.
    assert_eq!(made_in_a_group_directory(0o2777, 0o102_755), (1000, 4242, 0o755));
}

#[test]
fn user_makes_files_where_a_group_that_no_request_names_may() {
    assert_eq!(made_in_a_group_directory(0o2770, 0o100_664), (1000, 4242, 0o664));
}

#[test]
fn f08_locks_are_not_taken_on_the_host() {
    let (_dir, mut guest) = mount();
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    let fh = guest.open(file, libc::O_RDWR).unwrap();
    for opcode in [Opcode::Getlk, Opcode::Setlk, Opcode::Setlkw] {
        let lock = LkIn { fh, ..LkIn::default() };
        assert_eq!(guest.call(opcode, file, &[lock.as_slice()]), Err(Errno::ENOSYS), "{opcode:?}");
    }
}

#[test]
fn sizes_and_offsets_that_overflow_are_refused() {
    let (dir, mut guest) = mount();
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    let fh = guest.open(file, libc::O_RDWR).unwrap();
    let before = snapshot(dir.path());
    assert_eq!(guest.read(file, fh, u64::MAX, 16), Err(Errno::EINVAL));
    assert_eq!(guest.read(file, fh, 0, u32::MAX), Err(Errno::EINVAL));
    assert_eq!(guest.write(file, fh, u64::MAX, b"x"), Err(Errno::EINVAL));
    assert_eq!(guest.write(file, fh, i64::MAX as u64, b"xyz"), Err(Errno::EINVAL));
    let allocate = FallocateIn { fh, offset: u64::MAX, length: u64::MAX, ..FallocateIn::default() };
    assert_eq!(guest.call(Opcode::Fallocate, file, &[allocate.as_slice()]), Err(Errno::EINVAL));
    let seek = LseekIn { fh, offset: u64::MAX, whence: 99, padding: 0 };
    assert_eq!(guest.call(Opcode::Lseek, file, &[seek.as_slice()]), Err(Errno::EINVAL));
    let truncate = SetattrIn { valid: 1 << 3, size: u64::MAX, ..SetattrIn::default() };
    assert_eq!(guest.call(Opcode::Setattr, file, &[truncate.as_slice()]), Err(Errno::EINVAL));
    // A write that says more than it brings writes what it brings.
    let long = WriteIn { fh, size: 1 << 20, flags: 2, ..WriteIn::default() };
    guest.call(Opcode::Write, file, &[long.as_slice(), b"inside"]).unwrap();
    assert_eq!(snapshot(dir.path()).keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"inside");
}

#[test]
fn huge_attribute_and_listing_sizes_cost_no_memory() {
    let (_dir, mut guest) = mount();
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    let folder = guest.open_directory(guest.share).unwrap();
    let huge = GetxattrIn { size: u32::MAX, padding: 0 };
    let value = guest.call(Opcode::Getxattr, file, &[huge.as_slice(), b"user.none\0"]);
    assert_eq!(value, Err(Errno::ENODATA));
    guest.call(Opcode::Listxattr, file, &[huge.as_slice()]).unwrap();
    for opcode in [Opcode::Readdir, Opcode::Readdirplus] {
        let list = ReadIn { fh: folder, size: u32::MAX, ..ReadIn::default() };
        let listed = guest.call(opcode, guest.share, &[list.as_slice()]);
        assert!(matches!(listed, Err(Errno::ENOMEM | Errno::EINVAL)), "{opcode:?}: {listed:?}");
        let forged = ReadIn { fh: folder, size: 4096, offset: u64::MAX - 7, ..ReadIn::default() };
        // An offset that no listing gave out: an error, or entries, as the host's file system pleases.
        let _ = guest.call(opcode, guest.share, &[forged.as_slice()]);
    }
    let peak = guest.server.status_of("VmHWM:");
    let peak: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 64 << 10, "the server used {peak} KiB");
}

#[test]
fn hard_links_are_one_node() {
    let (dir, mut guest) = mount();
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    let link = LinkIn { oldnodeid: file };
    let reply = guest.call(Opcode::Link, guest.share, &[link.as_slice(), b"second\0"]).unwrap();
    assert_eq!(object::<EntryOut>(&reply).nodeid, file);
    assert_eq!(guest.lookup(guest.share, b"second\0"), Ok(file));
    assert_eq!(dir.path().join("file").metadata().unwrap().nlink(), 2);
    // After one name and all its lookups are gone, the other still leads to the file.
    guest.call(Opcode::Unlink, guest.share, &[b"file\0"]).unwrap();
    guest.tell(Opcode::Forget, file, &[ForgetIn { nlookup: 3 }.as_slice()]);
    let left = guest.lookup(guest.share, b"second\0").unwrap();
    let fh = guest.open(left, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(left, fh, 0, 100).unwrap(), b"inside");
}

#[test]
fn file_that_was_removed_and_one_that_took_its_place_are_two_nodes() {
    let (dir, mut guest) = mount();
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    std::fs::remove_file(dir.path().join("file")).unwrap();
    std::fs::write(dir.path().join("file"), "new").unwrap();
    let new = guest.lookup(guest.share, b"file\0").unwrap();
    assert_ne!(new, file);
    let (old_fh, new_fh) =
        (guest.open(file, libc::O_RDONLY).unwrap(), guest.open(new, libc::O_RDONLY).unwrap());
    assert_eq!(guest.read(file, old_fh, 0, 100).unwrap(), b"inside");
    assert_eq!(guest.read(new, new_fh, 0, 100).unwrap(), b"new");
}

#[test]
fn flags_that_make_files_or_change_descriptors_do_not_reach_the_host() {
    let (dir, mut guest) = mount();
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    let path_only =
        guest.open(file, libc::O_PATH | libc::O_DIRECT | libc::O_CREAT | libc::O_NOATIME).unwrap();
    assert_eq!(guest.read(file, path_only, 0, 100).unwrap(), b"inside");
    let unnamed = OpenIn { flags: (libc::O_TMPFILE | libc::O_RDWR).unsigned_abs(), fuse_flags: 0 };
    // Without O_TMPFILE it is a directory opened for writing.
    assert_eq!(guest.call(Opcode::Opendir, guest.share, &[unnamed.as_slice()]), Err(Errno::EISDIR));
    let flags = (libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME).unsigned_abs();
    let read = ReadIn { fh: path_only, size: 100, flags, ..ReadIn::default() };
    guest.call(Opcode::Read, file, &[read.as_slice()]).unwrap();
    assert_eq!(
        open_flags(&guest, &dir.path().join("file")) & (libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME),
        0
    );
}

/// Flags of the server's descriptor that is open for reading this file.
fn open_flags(guest: &Guest, file: &Path) -> i32 {
    let process = format!("/proc/{}", guest.server.child.id());
    let inode = file.metadata().unwrap().ino();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("{process}/fd")).unwrap() {
        let entry = entry.unwrap();
        let info = format!("{process}/fdinfo/{}", entry.file_name().display());
        let text = std::fs::read_to_string(info).unwrap();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        let is_it = entry.path().metadata().is_ok_and(|meta| meta.ino() == inode);
        if is_it && flags & libc::O_PATH == 0 {
            found.push(flags);
        }
    }
    assert_eq!(found.len(), 1);
    found[0]
}
