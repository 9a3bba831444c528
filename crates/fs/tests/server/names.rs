//! F01, F02: a name is one component, whatever the guest's kernel sends.

use std::path::Path;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, LinkIn, MkdirIn, MknodIn, Opcode, Rename2In, RenameIn};
use nix::errno::Errno;
use vm_memory_fs::ByteValued;

use crate::guest::{Guest, snapshot};

/// A directory `share` beside a file and a directory that no guest may reach.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("share/sub/deep")).unwrap();
    std::fs::create_dir(dir.path().join("share2")).unwrap();
    std::fs::write(dir.path().join("share/file"), "inside").unwrap();
    std::fs::write(dir.path().join("share/sub/file"), "inside").unwrap();
    std::fs::write(dir.path().join("secret"), "outside").unwrap();
    std::fs::write(dir.path().join("share2/secret"), "outside").unwrap();
    dir
}

/// Names that are none, and what each is answered with.
fn bad_names(outside: &Path) -> Vec<(Vec<u8>, Errno)> {
    let mut long = vec![b'x'; 256];
    long.push(0);
    vec![
        (b"\0".to_vec(), Errno::EINVAL),
        (b".\0".to_vec(), Errno::EINVAL),
        (b"..\0".to_vec(), Errno::EINVAL),
        (b"/\0".to_vec(), Errno::EINVAL),
        (b"sub/file\0".to_vec(), Errno::EINVAL),
        (b"../secret\0".to_vec(), Errno::EINVAL),
        (b"../share2/secret\0".to_vec(), Errno::EINVAL),
        (b"sub/../../secret\0".to_vec(), Errno::EINVAL),
        (format!("{}/secret\0", outside.display()).into_bytes(), Errno::EINVAL),
        (b"no end".to_vec(), Errno::EINVAL),
        (Vec::new(), Errno::EINVAL),
        (long, Errno::ENAMETOOLONG),
    ]
}

/// Every request that takes one name, with what stands before the name.
fn one_name() -> Vec<(Opcode, Vec<u8>)> {
    let mode = 0o100_644;
    vec![
        (Opcode::Lookup, vec![]),
        (Opcode::Unlink, vec![]),
        (Opcode::Rmdir, vec![]),
        (Opcode::Mknod, MknodIn { mode, ..MknodIn::default() }.as_slice().to_vec()),
        (Opcode::Mkdir, MkdirIn { mode: 0o755, umask: 0 }.as_slice().to_vec()),
        (Opcode::Create, CreateIn { flags: 2, mode, umask: 0, fuse_flags: 0 }.as_slice().to_vec()),
    ]
}

#[test]
fn f01_f02_bad_name_is_refused_by_every_request_with_one() {
    let dir = tree();
    let mut guest = Guest::mount(&dir.path().join("share"), false);
    let before = snapshot(dir.path());
    for (name, errno) in bad_names(dir.path()) {
        for (opcode, fields) in one_name() {
            let result = guest.call(opcode, guest.share, &[&fields, &name]);
            assert_eq!(result, Err(errno), "{opcode:?} of {name:?}");
        }
    }
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn f01_bad_name_is_refused_by_requests_with_two() {
    let dir = tree();
    let mut guest = Guest::mount(&dir.path().join("share"), false);
    let before = snapshot(dir.path());
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    for (name, errno) in bad_names(dir.path()) {
        let share = guest.share;
        let rename = RenameIn { newdir: share };
        let rename2 = Rename2In { newdir: share, flags: libc::RENAME_NOREPLACE, padding: 0 };
        for fields in [rename.as_slice(), rename2.as_slice()] {
            let opcode = if fields.len() == 8 { Opcode::Rename } else { Opcode::Rename2 };
            let to = guest.call(opcode, share, &[fields, b"file\0", &name]);
            assert_eq!(to, Err(errno), "{opcode:?} to {name:?}");
            // A first name without an end takes the second one with it: another error, and no renaming either.
            assert!(guest.call(opcode, share, &[fields, &name, b"new\0"]).is_err(), "{opcode:?} of {name:?}");
        }
        let link = LinkIn { oldnodeid: file };
        assert_eq!(guest.call(Opcode::Link, share, &[link.as_slice(), &name]), Err(errno), "{name:?}");
        let symlink = guest.call(Opcode::Symlink, share, &[&name, b"target\0"]);
        assert!(symlink.is_err() || name == b"no end", "a link named {name:?}");
    }
    std::fs::remove_file(dir.path().join("share/no endtarget")).ok();
    assert_eq!(snapshot(dir.path()).len(), before.len());
}

#[test]
fn f01_name_ends_at_its_first_nul() {
    let dir = tree();
    let mut guest = Guest::mount(&dir.path().join("share"), false);
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    assert_eq!(guest.lookup(guest.share, b"file\0/../../secret\0"), Ok(file));
}

#[test]
fn f03_share_s_parent_and_namesakes_cannot_be_reached() {
    let dir = tree();
    let mut guest = Guest::mount(&dir.path().join("share"), false);
    let sub = guest.lookup(guest.share, b"sub\0").unwrap();
    for parent in [1, guest.share, sub] {
        assert_eq!(guest.lookup(parent, b"..\0"), Err(Errno::EINVAL));
    }
    assert_eq!(guest.lookup(guest.share, b"secret\0"), Err(Errno::ENOENT));
    assert_eq!(guest.lookup(1, b"share2\0"), Err(Errno::ENOENT));
    assert_eq!(guest.lookup(1, b"s2\0"), Err(Errno::ENOENT));
}

#[test]
fn f01_symbolic_link_is_read_and_never_followed() {
    let dir = tree();
    let mut guest = Guest::mount(&dir.path().join("share"), false);
    let before = snapshot(&dir.path().join("share2"));
    let target = format!("{}/share2\0", dir.path().display());
    guest.call(Opcode::Symlink, guest.share, &[b"up\0", target.as_bytes()]).unwrap();
    let link = guest.lookup(guest.share, b"up\0").unwrap();
    assert_eq!(guest.call(Opcode::Readlink, link, &[]).unwrap(), target.trim_end_matches('\0').as_bytes());
    assert_eq!(guest.lookup(link, b"secret\0"), Err(Errno::ENOTDIR));
    assert_eq!(guest.open(link, libc::O_RDWR), Err(Errno::EBADF));
    assert_eq!(guest.open_directory(link), Err(Errno::EBADF));
    assert_eq!(guest.create(link, b"new\0"), Err(Errno::ENOTDIR));
    assert_eq!(snapshot(&dir.path().join("share2")), before);
}

#[test]
fn f01_directory_that_becomes_a_link_is_not_followed() {
    let dir = tree();
    let mut guest = Guest::mount(&dir.path().join("share"), false);
    let sub = guest.lookup(guest.share, b"sub\0").unwrap();
    // The host, or another guest of the same share, replaces it.
    std::fs::rename(dir.path().join("share/sub"), dir.path().join("share/old")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("share2"), dir.path().join("share/sub")).unwrap();
    // The node is still the directory that it was, and the name is now a link.
    assert_eq!(guest.lookup(sub, b"secret\0"), Err(Errno::ENOENT));
    guest.create(sub, b"new\0").unwrap();
    assert!(dir.path().join("share/old/new").exists());
    let link = guest.lookup(guest.share, b"sub\0").unwrap();
    assert_ne!(link, sub);
    assert_eq!(guest.lookup(link, b"secret\0"), Err(Errno::ENOTDIR));
}

#[test]
fn f03_directory_that_leaves_the_share_leads_nowhere_else() {
    let dir = tree();
    let mut guest = Guest::mount(&dir.path().join("share"), false);
    let sub = guest.lookup(guest.share, b"sub\0").unwrap();
    let deep = guest.lookup(sub, b"deep\0").unwrap();
    std::fs::rename(dir.path().join("share/sub"), dir.path().join("share2/sub")).unwrap();
    for node in [sub, deep] {
        assert_eq!(guest.lookup(node, b"..\0"), Err(Errno::EINVAL));
        assert_eq!(guest.lookup(node, b"../secret\0"), Err(Errno::EINVAL));
    }
}

#[test]
fn extended_attributes_of_the_host_cannot_be_set() {
    let dir = tree();
    let mut guest = Guest::mount(&dir.path().join("share"), false);
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    let names: [&[u8]; 6] = [
        b"trusted.overlay.opaque\0",
        b"security.capability\0",
        b"security.selinux\0",
        b"system.other\0",
        b"nonamespace\0",
        b"\0",
    ];
    for name in names {
        let size_and_flags = [1_u32.to_le_bytes(), [0; 4]].concat();
        let set = guest.call(Opcode::Setxattr, file, &[&size_and_flags, name, b"y"]);
        assert_eq!(set, Err(Errno::EPERM), "{name:?}");
        assert_eq!(guest.call(Opcode::Removexattr, file, &[name]), Err(Errno::EPERM), "{name:?}");
    }
}
