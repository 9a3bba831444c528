//! Pages that a guest keeps from one open of a file to the next.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::guest::Guest;

/// `FOPEN_KEEP_CACHE` of <linux/fuse.h>.
const KEEP_CACHE: u32 = 1 << 1;

/// A file that is older than the server asks for. Nobody can set ctime: the program itself has mostly been built long enough ago.
fn old_file() -> &'static Path {
    let path = Path::new(env!("CARGO_BIN_EXE_nacre-fs"));
    let changed = Duration::from_secs(path.metadata().unwrap().ctime() as u64 + 62);
    while SystemTime::UNIX_EPOCH.elapsed().unwrap() < changed {
        std::thread::sleep(Duration::from_millis(100));
    }
    path
}

/// The first page of a file: what the tests read.
fn page(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()[..4096].to_vec()
}

fn mount_overlay(lower: &Path, dir: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    for name in ["upper", "work", "root"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    let path = |name: &str| dir.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), path("upper"), path("work"));
    let flags = MsFlags::empty();
    mount(Some("overlay"), &dir.join("root"), Some("overlay"), flags, Some(options.as_str())).unwrap();
}

#[test]
fn pages_of_a_root_file_system_are_kept_where_the_host_has_not_changed_the_file() {
    let old = old_file();
    let content = page(old);
    // On the file system of the layer below: else its files have numbers of their own.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    mount_overlay(old.parent().unwrap(), dir.path());
    let root = dir.path().join("root");
    let mut guest = Guest::mount(&root, false);
    let node = guest.lookup(guest.share, b"nacre-fs\0").unwrap();
    let mut kept = |flags| {
        let (handle, options) = guest.open_with_options(node, flags).unwrap();
        (guest.read(node, handle, 0, 4096).unwrap(), options & KEEP_CACHE != 0)
    };
    assert_eq!(kept(libc::O_RDONLY), (content.clone(), false), "not known to be what was read before");
    assert_eq!(kept(libc::O_RDONLY), (content.clone(), true));
    assert_eq!(kept(libc::O_RDONLY), (content.clone(), true));

    // Of the same size and time of modification.
    let path = root.join("nacre-fs");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    let other = vec![7; 4096];
    let mut file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all(&other).unwrap();
    file.set_modified(before).unwrap();
    for _ in 0..2 {
        assert_eq!(kept(libc::O_RDONLY), (other.clone(), false), "it has just been written");
    }
    assert_eq!(kept(libc::O_RDWR | libc::O_TRUNC), (Vec::new(), false));
    assert_eq!(kept(libc::O_RDONLY), (Vec::new(), false));
}

#[test]
fn pages_of_a_volume_are_read_anew() {
    let old = old_file();
    let content = page(old);
    let mut guest = Guest::mount(old.parent().unwrap(), true);
    let node = guest.lookup(guest.share, b"nacre-fs\0").unwrap();
    for _ in 0..3 {
        let (handle, options) = guest.open_with_options(node, libc::O_RDONLY).unwrap();
        assert_eq!((guest.read(node, handle, 0, 4096).unwrap(), options & KEEP_CACHE), (content.clone(), 0));
    }
}
