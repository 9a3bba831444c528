//! Paths below the container's root, resolved by the kernel so that they cannot leave it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FsWord, Mode, OFlags, ResolveFlags, fstatfs, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

use super::error::StepError;

/// <linux/magic.h>
pub(super) const PROC_SUPER_MAGIC: FsWord = 0x9fa0;
pub(super) const SYSFS_MAGIC: FsWord = 0x6265_6572;
pub(super) const DEVPTS_SUPER_MAGIC: FsWord = 0x1cd1;

/// Links that lead to nothing, one to the next, until what they mean is made.
const MAX_LINKS: usize = 8;

/// Tries where a rename elsewhere interrupts a lookup.
const RETRIES: usize = 16;

/// What symbolic links of the image do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// They are followed as if the root were `/` (`/var/run` -> `/run` is usual).
    InRoot,
    /// They are refused.
    Refused,
}

/// The root directory.
pub(super) struct Root(OwnedFd);

impl Root {
    pub(super) fn new(dir: OwnedFd) -> Self {
        Self(dir)
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens a path. Magic links (`/proc/self/fd/7`) are always refused.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub(super) fn open(&self, path: &str, flags: OFlags, links: Links) -> rustix::io::Result<OwnedFd> {
        let relative = match path.trim_start_matches('/') {
            "" => ".",
            relative => relative,
        };
        let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        resolve.set(ResolveFlags::NO_SYMLINKS, links == Links::Refused);
        for _ in 0..RETRIES {
            match openat2(&self.0, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens a directory as a place to mount on, and makes what is missing of it (mode 0755, root).
    ///
    /// # Errors
    /// [`StepError::Symlink`] where a link is refused.
    pub(super) fn directory(&self, path: &str, links: Links) -> Result<OwnedFd, StepError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.open(path, flags, links) {
            Err(Errno::NOENT) => {}
            other => return other.map_err(|error| refused("open", path, links, error)),
        }
        let (parent, name) = split(path);
        let parent = self.directory(parent, links)?;
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            // EEXIST: a link that leads nowhere; the second try refuses it.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(StepError::path("make directory", path)(error)),
        }
        self.open(path, flags, links).map_err(|error| refused("open", path, links, error))
    }

    /// Opens a file as a place to mount on, and makes it (empty) and its directories where they are missing: where
    /// a link of the image leads to nothing (`/etc/resolv.conf` -> `../run/systemd/resolve/stub-resolv.conf` is usual),
    /// what it means is made.
    ///
    /// # Errors
    /// As [`Root::directory`].
    pub(super) fn file(&self, path: &str, links: Links) -> Result<OwnedFd, StepError> {
        self.file_through(path, links, MAX_LINKS)
    }

    fn file_through(&self, path: &str, links: Links, hops: usize) -> Result<OwnedFd, StepError> {
        match self.open(path, OFlags::PATH, links) {
            Err(Errno::NOENT) => {}
            other => return other.map_err(|error| refused("open", path, links, error)),
        }
        let (dir, name) = split(path);
        let parent = self.directory(dir, links)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) => {}
            Err(Errno::EXIST) => {
                if let Some(target) = target(&parent, dir, name).filter(|_| links == Links::InRoot)
                    && let Some(hops) = hops.checked_sub(1)
                {
                    return self.file_through(&target, links, hops);
                }
            }
            Err(error) => return Err(StepError::path("make file", path)(error)),
        }
        self.open(path, OFlags::PATH, links).map_err(|error| refused("open", path, links, error))
    }
}

/// Path that a link means, which the kernel resolves in the root as it does any other.
fn target(parent: &OwnedFd, dir: &str, name: &str) -> Option<String> {
    let target = readlinkat(parent, name, Vec::new()).ok()?.into_string().ok()?;
    Some(if target.starts_with('/') { target } else { format!("{dir}/{target}") })
}

/// Whether a descriptor is on a file system of this type.
pub(super) fn is_on(fd: impl AsFd, magic: FsWord) -> bool {
    fstatfs(fd).is_ok_and(|stat| stat.f_type == magic)
}

/// Directory and last component of a cleaned path that is not `/`.
pub(super) fn split(path: &str) -> (&str, &str) {
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some(parts) => parts,
        None => ("/", path),
    }
}

fn refused(action: &'static str, path: &str, links: Links, error: Errno) -> StepError {
    match (links, error) {
        (Links::Refused, Errno::LOOP) => StepError::Symlink(path.to_owned()),
        _ => StepError::path(action, path)(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root(dir: &tempfile::TempDir) -> Root {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Root::new(rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap())
    }

    #[test]
    fn missing_directories_and_files_are_made_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        root(&dir).directory("/a/b/c", Links::InRoot).unwrap();
        root(&dir).file("/a/x/file", Links::Refused).unwrap();
        assert!(dir.path().join("a/b/c").is_dir() && dir.path().join("a/x/file").is_file());
    }

    #[test]
    fn absolute_link_of_the_image_stays_in_the_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::create_dir(dir.path().join("var")).unwrap();
        symlink("/run", dir.path().join("var/run")).unwrap();
        symlink("../../../../../../run", dir.path().join("var/up")).unwrap();
        root(&dir).directory("/var/run/one", Links::InRoot).unwrap();
        root(&dir).directory("/var/up/two", Links::InRoot).unwrap();
        assert!(dir.path().join("run/one").is_dir() && dir.path().join("run/two").is_dir());
    }

    #[test]
    fn c04_links_are_refused_where_none_may_be() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/tmp", dir.path().join("dev")).unwrap();
        for path in ["/dev", "/dev/null"] {
            let refused = root(&dir).directory(path, Links::Refused);
            assert!(matches!(refused, Err(StepError::Symlink(_))), "{path}");
            assert!(matches!(root(&dir).file(path, Links::Refused), Err(StepError::Symlink(_))), "{path}");
        }
    }

    #[test]
    fn link_that_leads_nowhere_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/nowhere", dir.path().join("link")).unwrap();
        assert!(root(&dir).directory("/link", Links::InRoot).is_err());
        assert!(root(&dir).file("/link", Links::Refused).is_err());
        assert!(!dir.path().join("nowhere").exists());
    }

    #[test]
    fn file_that_a_link_means_is_made_in_the_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("../run/resolve/stub", dir.path().join("etc/resolv.conf")).unwrap();
        symlink("/../../../../../../tmp/x", dir.path().join("etc/hosts")).unwrap();
        symlink("hosts", dir.path().join("etc/second")).unwrap();
        for path in ["/etc/resolv.conf", "/etc/second", "/etc/hosts"] {
            root(&dir).file(path, Links::InRoot).unwrap();
        }
        assert!(dir.path().join("run/resolve/stub").is_file() && dir.path().join("tmp/x").is_file());
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        symlink("c/x", dir.path().join("c")).unwrap();
        for path in ["/a", "/c"] {
            assert!(root(&dir).file(path, Links::InRoot).is_err(), "{path}");
        }
    }

    #[test]
    fn magic_links_are_refused() {
        let dir = Root::new(rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap());
        let error = dir.open("/proc/self/cwd", OFlags::PATH, Links::InRoot).unwrap_err();
        assert_eq!(error, Errno::LOOP);
    }

    #[test]
    fn paths_split_at_their_last_component() {
        assert_eq!([split("/a"), split("/a/b/c")], [("/", "a"), ("/a/b", "c")]);
    }
}
