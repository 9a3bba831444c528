//! A read-only share stays as it is, whatever is asked.

use fuse_backend_rs::abi::fuse_abi::{
    CreateIn, FallocateIn, LinkIn, MkdirIn, MknodIn, Opcode, Rename2In, RenameIn, SetattrIn, WriteIn,
};
use nix::errno::Errno;
use vm_memory_fs::ByteValued;

use crate::guest::{Guest, snapshot};

fn mount() -> (tempfile::TempDir, Guest) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("file"), "inside").unwrap();
    let guest = Guest::mount(dir.path(), true);
    (dir, guest)
}

#[test]
fn every_request_that_changes_names_is_refused() {
    let (dir, mut guest) = mount();
    let before = snapshot(dir.path());
    let (share, file) = (guest.share, guest.lookup(guest.share, b"file\0").unwrap());
    let mode = 0o644;
    let create = CreateIn { flags: 2, mode, umask: 0, fuse_flags: 0 };
    let rename2 = Rename2In { newdir: share, flags: libc::RENAME_EXCHANGE, padding: 0 };
    let node = MknodIn { mode: libc::S_IFIFO | mode, ..MknodIn::default() };
    let requests = [
        (Opcode::Create, [create.as_slice(), b"new\0"].concat()),
        (Opcode::Mknod, [node.as_slice(), b"new\0"].concat()),
        (Opcode::Mkdir, [MkdirIn { mode, umask: 0 }.as_slice(), b"new\0"].concat()),
        (Opcode::Symlink, b"new\0target\0".to_vec()),
        (Opcode::Link, [LinkIn { oldnodeid: file }.as_slice(), b"new\0"].concat()),
        (Opcode::Unlink, b"file\0".to_vec()),
        (Opcode::Rmdir, b"sub\0".to_vec()),
        (Opcode::Rename, [RenameIn { newdir: share }.as_slice(), b"file\0new\0"].concat()),
        (Opcode::Rename2, [rename2.as_slice(), b"file\0sub\0"].concat()),
    ];
    for (opcode, body) in requests {
        assert_eq!(guest.call(opcode, share, &[&body]), Err(Errno::EROFS), "{opcode:?}");
    }
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn every_request_that_changes_a_file_is_refused() {
    let (dir, mut guest) = mount();
    let before = snapshot(dir.path());
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(guest.open(file, flags), Err(Errno::EROFS), "{flags:#o}");
    }
    // FATTR_MODE, _UID, _GID, _SIZE, _ATIME | _ATIME_NOW, _MTIME.
    for valid in [1, 1 << 1, 1 << 2, 1 << 3, 1 << 4 | 1 << 7, 1 << 5] {
        let attributes = SetattrIn { valid, mode: 0o777, uid: 1, ..SetattrIn::default() };
        let set = guest.call(Opcode::Setattr, file, &[attributes.as_slice()]);
        assert_eq!(set, Err(Errno::EROFS), "{valid:#x}");
    }
    let size_and_flags = [1_u32.to_le_bytes(), [0; 4]].concat();
    let set = guest.call(Opcode::Setxattr, file, &[&size_and_flags, b"user.x\0y"]);
    assert_eq!(set, Err(Errno::EROFS));
    assert_eq!(guest.call(Opcode::Removexattr, file, &[b"user.x\0"]), Err(Errno::EROFS));
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn handle_that_is_open_for_reading_does_not_write() {
    let (dir, mut guest) = mount();
    let before = snapshot(dir.path());
    let file = guest.lookup(guest.share, b"file\0").unwrap();
    let fh = guest.open(file, libc::O_RDONLY).unwrap();
    // With flags that claim another mode than it was opened with.
    let write = WriteIn { fh, size: 1, flags: libc::O_RDWR.unsigned_abs(), ..WriteIn::default() };
    assert_eq!(guest.call(Opcode::Write, file, &[write.as_slice(), b"x"]), Err(Errno::EBADF));
    let allocate = FallocateIn { fh, length: 1 << 20, ..FallocateIn::default() };
    assert_eq!(guest.call(Opcode::Fallocate, file, &[allocate.as_slice()]), Err(Errno::EBADF));
    for valid in [1, 1 << 3, 1 << 5] {
        let attributes = SetattrIn { valid: valid | 1 << 6, fh, mode: 0o777, ..SetattrIn::default() };
        let set = guest.call(Opcode::Setattr, file, &[attributes.as_slice()]);
        assert!(matches!(set, Err(Errno::EROFS | Errno::EINVAL)), "{valid:#x}: {set:?}");
    }
    assert_eq!(guest.read(file, fh, 0, 100).unwrap(), b"inside");
    assert_eq!(snapshot(dir.path()), before);
}

#[test]
fn directory_of_the_shares_itself_cannot_be_written() {
    let (_dir, mut guest) = mount();
    let mkdir = MkdirIn { mode: 0o755, umask: 0 };
    assert_eq!(guest.call(Opcode::Mkdir, 1, &[mkdir.as_slice(), b"new\0"]), Err(Errno::EROFS));
    let removed = guest.call(Opcode::Rmdir, 1, &[b"s\0"]);
    assert!(matches!(removed, Err(Errno::EROFS | Errno::EBUSY)), "{removed:?}");
    assert!(guest.call(Opcode::Rename, 1, &[&1_u64.to_le_bytes(), b"s\0t\0"]).is_err());
    assert_eq!(guest.lookup(1, b"s\0"), Ok(guest.share));
}
