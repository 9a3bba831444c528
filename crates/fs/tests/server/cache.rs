//! Pages that a guest keeps from one open of a file to the next.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use crate::guest::Guest;

/// `FOPEN_KEEP_CACHE` of <linux/fuse.h>.
const KEEP_CACHE: u32 = 1 << 1;

#[test]
fn pages_are_kept_where_the_host_has_not_changed_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    fs::write(&path, "first").unwrap();
    let mut guest = Guest::mount(dir.path(), false);
    let node = guest.lookup(guest.share, b"program\0").unwrap();
    let mut kept = |flags| {
        let (handle, options) = guest.open_with_options(node, flags).unwrap();
        (guest.read(node, handle, 0, 100).unwrap(), options & KEEP_CACHE != 0)
    };

    // Nobody can set ctime: it has to get old.
    let settled = |path| {
        let changed = fs::metadata(path).unwrap().ctime() as u64;
        while SystemTime::UNIX_EPOCH.elapsed().unwrap() < Duration::from_secs(changed + 3) {
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    assert_eq!(kept(libc::O_RDONLY), (b"first".to_vec(), false));
    assert_eq!(kept(libc::O_RDONLY), (b"first".to_vec(), false), "it has just been written");
    settled(&path);
    assert_eq!(kept(libc::O_RDONLY), (b"first".to_vec(), false), "not known to be what was read before");
    assert_eq!(kept(libc::O_RDONLY), (b"first".to_vec(), true));
    assert_eq!(kept(libc::O_RDWR), (b"first".to_vec(), true));

    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "other").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    assert_eq!(kept(libc::O_RDONLY), (b"other".to_vec(), false), "of the same size and time of modification");
    settled(&path);
    assert!(!kept(libc::O_RDONLY).1);
    assert!(kept(libc::O_RDONLY).1);
    assert_eq!(kept(libc::O_RDWR | libc::O_TRUNC), (b"".to_vec(), false));
    assert_eq!(kept(libc::O_RDONLY), (b"".to_vec(), false));
}
