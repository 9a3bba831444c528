//! Conversion for tests, and the programs that judge it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nacre_image::layer::{LayerError, LayerLimits, LayerSummary, convert};
use tempfile::TempDir;

use crate::tree::{self, Tree};

/// A blob on disk and what its conversion reported.
pub(crate) struct Blob {
    pub(crate) dir: TempDir,
    pub(crate) summary: LayerSummary,
}

impl Blob {
    pub(crate) fn of(tar: &[u8]) -> Self {
        Self::with_limits(tar, &LayerLimits::default()).unwrap()
    }

    pub(crate) fn with_limits(tar: impl io::Read, limits: &LayerLimits) -> Result<Self, LayerError> {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("blob")).unwrap();
        let summary = convert(tar, &file, limits)?;
        assert_eq!(file.metadata().unwrap().len(), summary.blob_len);
        Ok(Self { dir, summary })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("blob")
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).unwrap()
    }

    /// What erofs-rs reads.
    pub(crate) fn tree(&self) -> Tree {
        tree::of_blob(&self.bytes())
    }

    /// Has every reader at hand read the blob, and expects the same tree of all; returns it.
    pub(crate) fn read_by_all(&self) -> Tree {
        let ours = self.tree();
        self.check_with_fsck(&ours);
        self.with_kernel(|root| tree::assert_same("erofs-rs", &ours, "kernel", &tree::of_directory(root)));
        ours
    }

    /// Lets `fsck.erofs` check the blob and unpack it. It restores no attributes and no hard links, and not
    /// each version keeps fractions of seconds.
    fn check_with_fsck(&self, ours: &Tree) {
        let Some(version) = fsck_version() else { return };
        let out = self.dir.path().join("fsck");
        let output = Command::new("fsck.erofs")
            .arg(format!("--extract={}", out.display()))
            .arg(self.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "fsck.erofs: {}", String::from_utf8_lossy(&output.stderr));
        let old = version < (1, 8);
        if old && self.has_chunks() {
            eprintln!("NOT CHECKED: files with holes by fsck.erofs: before 1.8 it leaves holes out");
            return;
        }
        let reduced = |tree: &Tree| {
            let mut tree = tree.clone();
            for (name, node) in &mut tree {
                node.nlink = 0;
                node.xattrs.clear();
                node.first_name.clear();
                node.mtime.1 = 0;
                if name.is_empty() {
                    node.mtime = (0, 0);
                }
                if old {
                    // It sets the owner last, which takes these bits away.
                    node.mode &= !0o6000;
                }
            }
            tree
        };
        tree::assert_same("erofs-rs", &reduced(ours), "fsck.erofs", &reduced(&tree::of_directory(&out)));
    }

    /// Whether any file is stored in chunks (`EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`).
    fn has_chunks(&self) -> bool {
        self.bytes()[1024 + 80] & 4 != 0
    }

    /// Mounts the blob, if this machine can, and gives the mount point to `look`.
    pub(crate) fn with_kernel(&self, look: impl FnOnce(&Path)) {
        let point = self.dir.path().join("mnt");
        fs::create_dir(&point).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .args([self.path(), point.clone()])
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        if !mount.status.success() {
            let why = String::from_utf8_lossy(&mount.stderr).trim().to_owned();
            // As root, on a kernel with EROFS, a blob that does not mount is a bad blob.
            let must = rustix::process::geteuid().is_root()
                && fs::read_to_string("/proc/filesystems").unwrap().contains("\terofs\n")
                && Path::new("/dev/loop-control").exists();
            assert!(!must, "the kernel does not mount the blob: {why}");
            eprintln!("NOT CHECKED: the kernel as a reader of the blob: {why}");
            return;
        }
        let _unmount = Unmount(point.clone());
        look(&point);
    }
}

/// Mounts blobs, top layer first, and an overlay of them, and gives its mount point to `look`.
pub(crate) fn with_overlay(layers: &[&Blob], look: impl FnOnce(&Path)) {
    fn stack(layers: &[&Blob], mounted: &mut Vec<PathBuf>, look: &mut dyn FnMut(&[PathBuf])) {
        match layers {
            [] => look(mounted),
            [first, rest @ ..] => first.with_kernel(|point| {
                mounted.push(point.to_path_buf());
                stack(rest, mounted, look);
            }),
        }
    }
    let mut look = Some(look);
    stack(layers, &mut Vec::new(), &mut |points| {
        let dir = tempfile::tempdir().unwrap();
        let lower: Vec<_> = points.iter().map(|point| point.to_str().unwrap()).collect();
        let mount = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &format!("lowerdir={}", lower.join(":"))])
            .arg(dir.path())
            .output()
            .unwrap();
        if !mount.status.success() {
            eprintln!("NOT CHECKED: overlayfs: {}", String::from_utf8_lossy(&mount.stderr).trim());
            return;
        }
        let _unmount = Unmount(dir.path().to_path_buf());
        look.take().expect("called once")(dir.path());
    });
}

/// Unmounts when the test is through, or has failed.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Unpacks an archive with GNU tar; `None` if this machine cannot.
pub(crate) fn unpacked_by_gnu_tar(tar: &[u8]) -> Option<Tree> {
    if !available("tar") || !rustix::process::geteuid().is_root() {
        eprintln!("NOT CHECKED: GNU tar as a reader of the archive (needs root)");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("a.tar");
    fs::write(&archive, tar).unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let output = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--same-owner", "-p", "--numeric-owner"])
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(&root)
        .output()
        .unwrap();
    assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    Some(tree::of_directory(&root))
}

/// Runs `script` in a new directory as root would and returns the archive that GNU tar makes of it.
pub(crate) fn packed_by_gnu_tar(script: &str, options: &[&str]) -> Option<Vec<u8>> {
    if !available("tar") || !rustix::process::geteuid().is_root() {
        eprintln!("NOT CHECKED: GNU tar as a writer of archives (needs root)");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new("bash").args(["-euc", script]).current_dir(&dir).status().unwrap();
    assert!(made.success(), "the script failed");
    let output =
        Command::new("tar").args(options).args(["-cf", "-", "."]).current_dir(&dir).output().unwrap();
    assert!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

/// The version of `fsck.erofs`, if there is one.
fn fsck_version() -> Option<(u32, u32)> {
    if !available("fsck.erofs") {
        return None;
    }
    let output = Command::new("fsck.erofs").arg("-V").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().last().expect("it prints its version");
    let mut parts = version.split(['.', '-', '~']).map(|part| part.parse().unwrap_or(0));
    Some((parts.next()?, parts.next()?))
}

/// Whether a program is there; if not, says so.
fn available(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
    if !found {
        eprintln!("NOT CHECKED: {program} is not installed");
    }
    found
}
