//! What FUSE_INIT negotiates.

use fuse_backend_rs::api::filesystem::FsOptions;

use crate::guest::Guest;

/// Flags of the reply, both words of them.
fn flags(guest: &Guest) -> FsOptions {
    FsOptions::from_bits_truncate(u64::from(guest.init.flags) | u64::from(guest.init.flags2) << 32)
}

#[test]
fn requests_carry_a_mebibyte() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::mount(dir.path(), false);
    // Linux sends single pages without BIG_WRITES, and 32 pages without MAX_PAGES.
    assert!(flags(&guest).contains(FsOptions::BIG_WRITES | FsOptions::MAX_PAGES), "{:?}", flags(&guest));
    assert_eq!((guest.init.max_pages, guest.init.max_write), (256, 1 << 20));
}

#[test]
fn requests_run_side_by_side_and_need_none_before_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = FsOptions::ASYNC_READ | FsOptions::PARALLEL_DIROPS | FsOptions::HANDLE_KILLPRIV_V2;
    let guest = Guest::mount(dir.path(), false);
    assert!(flags(&guest).contains(wanted), "{:?}", flags(&guest));
}

#[test]
fn what_breaks_sharing_with_the_host_is_not_negotiated() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest::mount(dir.path(), false);
    let unwanted = FsOptions::WRITEBACK_CACHE
        | FsOptions::ZERO_MESSAGE_OPEN
        | FsOptions::POSIX_LOCKS
        | FsOptions::FLOCK_LOCKS
        | FsOptions::EXPORT_SUPPORT
        | FsOptions::PERFILE_DAX
        | FsOptions::FD_PASSTHROUGH;
    assert!(!flags(&guest).intersects(unwanted), "{:?}", flags(&guest));
    assert!(flags(&guest).contains(FsOptions::AUTO_INVAL_DATA), "{:?}", flags(&guest));
}

#[test]
fn guest_without_big_writes_gets_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::mount(dir.path(), false);
    let reply = guest.initialise(0);
    assert_eq!((reply.flags, reply.max_pages, reply.max_write), (0, 0, 4096));
}

#[test]
fn write_of_a_mebibyte_arrives_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::mount(dir.path(), false);
    let data: Vec<u8> = (0..1 << 20).map(|index: u32| (index % 251) as u8).collect();
    let (node, fh) = guest.create(guest.share, b"f\0").unwrap();
    assert_eq!(guest.write(node, fh, 0, &data), Ok(1 << 20));
    assert!(std::fs::read(dir.path().join("f")).unwrap() == data, "the file is not what was written");
    assert!(guest.read(node, fh, 0, 1 << 20).unwrap() == data, "the file is not what is read");
}
