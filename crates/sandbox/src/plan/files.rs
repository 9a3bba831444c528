//! Small files of the bundle, which the guest gets by value.
//!
//! A container's `/etc/hosts` and the like are bind mounts of files in the bundle. As shares they would need a file
//! server and a device for a few hundred bytes. Whoever wrote the bundle names the files, so nothing but a regular
//! file that is reached without a link, below the bundle's directory, is read, and not more of it than agreed.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};

use nacre_protocol::files::{MAX_FILE_BYTES, MAX_FILES};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};

/// A file that goes along with the configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct BundleFile {
    /// Its name under [`nacre_protocol::files::FILES_DIR`].
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

impl std::fmt::Debug for BundleFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, content, mode } = self;
        write!(f, "BundleFile({name}, {} bytes, {mode:o})", content.len())
    }
}

/// Takes a bind mount's source into `files`, where it is a small file of the bundle and there is room for it.
///
/// Whatever else it is, missing or not to be read included, becomes a share, which tells what is wrong with it.
pub(super) fn take(bundle: &Path, source: &Path, name: &str, files: &mut Vec<BundleFile>) -> bool {
    if files.len() >= MAX_FILES {
        return false;
    }
    let Some((content, mode)) = read(bundle, source) else { return false };
    files.push(BundleFile { name: name.to_owned(), content, mode });
    true
}

fn read(bundle: &Path, source: &Path) -> Option<(Vec<u8>, u32)> {
    let relative = source.strip_prefix(bundle).ok()?;
    if relative.components().next().is_none()
        || !relative.components().all(|part| matches!(part, Component::Normal(_)))
    {
        return None;
    }
    let dir = open(bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // Not to be held up by a fifo.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // A device is not opened for reading at all: that alone may have an effect.
    let place =
        openat2(&dir, relative, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
            .ok()?;
    if FileType::from_raw_mode(fstat(&place).ok()?.st_mode) != FileType::RegularFile {
        return None;
    }
    let file = File::from(openat2(&dir, relative, flags, Mode::empty(), resolve).ok()?);
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES as u64 {
        return None;
    }
    let mut content = Vec::new();
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut content).ok()?;
    // It may have grown meanwhile.
    (content.len() <= MAX_FILE_BYTES).then(|| (content, metadata.permissions().mode() & 0o777))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn taken(bundle: &Path, source: &Path) -> Option<BundleFile> {
        let mut files = Vec::new();
        take(bundle, source, "m0", &mut files).then(|| files.remove(0))
    }

    #[test]
    fn small_file_of_the_bundle_is_taken_with_its_mode() {
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().join("hosts");
        fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let file = taken(bundle.path(), &path).unwrap();
        assert_eq!((file.content.as_slice(), file.mode), (b"127.0.0.1 localhost\n".as_slice(), 0o640));
    }

    #[test]
    fn h02_only_files_below_the_bundle_are_read() {
        let outer = tempfile::tempdir().unwrap();
        let bundle = outer.path().join("bundle");
        fs::create_dir_all(bundle.join("dir")).unwrap();
        fs::write(outer.path().join("secret"), "x").unwrap();
        fs::write(bundle.join("file"), "x").unwrap();
        symlink("../secret", bundle.join("link")).unwrap();
        symlink("..", bundle.join("up")).unwrap();
        for bad in [
            "link",
            "up/secret",
            "../secret",
            "dir/../../secret",
            "dir/../file",
            "dir",
            "",
            "missing",
            "dir/x",
        ] {
            assert_eq!(taken(&bundle, &bundle.join(bad)), None, "{bad}");
        }
        assert_eq!(taken(&bundle, &outer.path().join("secret")), None);
        assert_eq!(taken(&bundle, Path::new("/etc/passwd")), None);
    }

    #[test]
    fn fifo_and_long_file_stay_shares() {
        let bundle = tempfile::tempdir().unwrap();
        let path = |name: &str| bundle.path().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::write(path("most"), vec![b'x'; MAX_FILE_BYTES]).unwrap();
        fs::write(path("more"), vec![b'x'; MAX_FILE_BYTES + 1]).unwrap();
        assert_eq!((taken(bundle.path(), &path("fifo")), taken(bundle.path(), &path("more"))), (None, None));
        assert_eq!(taken(bundle.path(), &path("most")).unwrap().content.len(), MAX_FILE_BYTES);
    }

    #[test]
    fn seventeenth_file_stays_a_share() {
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().join("file");
        fs::write(&path, "x").unwrap();
        let mut files = Vec::new();
        let taken = (0..=MAX_FILES).filter(|at| take(bundle.path(), &path, &format!("m{at}"), &mut files));
        assert_eq!(taken.count(), MAX_FILES);
    }
}
