//! Mount points in a root directory that the guest gets read-only.
//!
//! A container's mounts need something to be mounted on. In a writable root the agent makes what is missing; one that the host
//! does not let the guest write to gets it here, before it is shared, as with any runtime on the host. The directory
//! is an image's and may hold links: all of them are followed as from within it (openat2(2), `RESOLVE_IN_ROOT`), so
//! nothing outside of it is touched.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

/// Tries of a path with `..` in it on a machine that mounts all the time.
const MAX_TRIES: u32 = 128;

/// Something that the container will find at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// Where, in the container.
    pub path: PathBuf,
    /// File or directory of the host that will be bound there; none: a directory.
    pub source: Option<PathBuf>,
}

/// Makes what is missing below `root`.
///
/// # Errors
/// What the kernel says, with the path in the container.
pub fn make(root: &Path, points: &[MountPoint]) -> Result<(), (PathBuf, Errno)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::openat(CWD, root, flags, Mode::empty()).map_err(|errno| (root.to_owned(), errno))?;
    for (index, point) in points.iter().enumerate() {
        // On a file system that is mounted before: not in this directory.
        let covered =
            |earlier: &MountPoint| point.path != earlier.path && point.path.starts_with(&earlier.path);
        if points[..index].iter().any(covered) {
            continue;
        }
        make_one(&root, point).map_err(|errno| (point.path.clone(), errno))?;
    }
    Ok(())
}

fn make_one(root: &OwnedFd, point: &MountPoint) -> rustix::io::Result<()> {
    if find(root, &point.path).is_ok() {
        return Ok(());
    }
    let names: Vec<_> = point.path.components().filter(|part| *part != Component::RootDir).collect();
    // The agent refuses such a path, in words.
    if names.iter().any(|part| !matches!(part, Component::Normal(_))) {
        return Ok(());
    }
    let is_file =
        point.source.as_deref().is_some_and(|source| source.metadata().is_ok_and(|found| !found.is_dir()));
    let mut upto = PathBuf::new();
    for (index, name) in names.iter().enumerate() {
        let parent = upto.clone();
        upto.push(name);
        match find(root, &upto) {
            Err(Errno::NOENT) => {}
            other => {
                other?;
                continue;
            }
        }
        let parent = find(root, &parent)?;
        if is_file && index + 1 == names.len() {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&parent, name.as_os_str(), flags, Mode::from_raw_mode(0o644))?;
        } else {
            mkdirat(&parent, name.as_os_str(), Mode::from_raw_mode(0o755))?;
        }
    }
    Ok(())
}

fn find(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..MAX_TRIES {
        match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Somebody on this machine has mounted or renamed something meanwhile (openat2(2)).
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn point(path: &str, source: Option<&Path>) -> MountPoint {
        MountPoint { path: path.into(), source: source.map(Path::to_owned) }
    }

    #[test]
    fn missing_directories_and_files_are_made_and_others_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "host").unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/hosts"), "image").unwrap();
        let points = [
            point("/proc", None),
            point("/etc/hosts", Some(&file)),
            point("/etc/resolv.conf", Some(&file)),
            point("/var/lib/data", Some(dir.path())),
        ];
        make(&root, &points).unwrap();
        assert!(root.join("proc").is_dir() && root.join("var/lib/data").is_dir());
        assert_eq!(fs::read_to_string(root.join("etc/hosts")).unwrap(), "image");
        assert_eq!(fs::read_to_string(root.join("etc/resolv.conf")).unwrap(), "");
    }

    #[test]
    fn i10_links_of_the_image_stay_in_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../outside", root.join("climbing")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        for path in ["/absolute/x", "/climbing/x", "/magic/x", "/../outside/x", "/a/../../outside/x"] {
            // Where a link leads nowhere within the image it is an error, and that is as good.
            let _ = make(&root, &[point(path, None)]);
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn link_to_a_directory_of_the_image_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        symlink("/run", dir.path().join("link")).unwrap();
        make(dir.path(), &[point("/link/sub/deep", None)]).unwrap();
        assert!(dir.path().join("run/sub/deep").is_dir());
    }

    #[test]
    fn what_lies_on_another_mount_is_not_made_here() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &[point("/dev", None), point("/dev/pts", None)]).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("dev")).unwrap().count(), 0);
    }
}
