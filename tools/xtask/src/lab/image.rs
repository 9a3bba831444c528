//! L1's image: kernel, first root and disk, built once and kept in the cache.
//!
//! Two stages, each with a stamp of its inputs: the root file system (minutes), and the disk made of it with our
//! own files and the prepared fixtures (a minute).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::{Job, once, rootfs};
use crate::packages::{self, Need};
use crate::process::{command, run, run_logged, step, tail};
use crate::project::{Project, is_root};
use nacre_guest_kernel_config::cpio::Archive;

const INIT: &str = include_str!("../../../lab/init");
const INITRAMFS_INIT: &str = include_str!("../../../lab/initramfs-init");
const AGENT: &str = include_str!("../../../lab/agent.py");
const PREPARE: &str = include_str!("../../../lab/prepare");

/// Size of the disk; sparse on the host.
const DISK_BYTES: u64 = 8 << 30;

/// Raised when the steps of this module change in a way that changes the image.
const IMAGE_VERSION: u32 = 1;

/// A built image.
pub(super) struct Image {
    dir: PathBuf,
    stamp: String,
}

/// Gives the image, building what is missing or out of date.
pub(super) fn build(project: &Project) -> Result<Image> {
    let dir = project.cache.join("lab");
    let image = Image { stamp: image_stamp(), dir };
    if image.is_current() {
        return Ok(image);
    }
    if !is_root() {
        bail!("building the lab needs root: run it with sudo -E");
    }
    packages::ensure(&[Need::Lab])?;
    fs::create_dir_all(&image.dir).with_context(|| format!("cannot create {}", image.dir.display()))?;
    let lock = fs::File::create(image.dir.join("lock")).context("cannot create the lab's lock")?;
    lock.lock()?;
    if image.is_current() {
        return Ok(image);
    }
    eprintln!("==> building the lab in {} (some minutes, once)", image.dir.display());
    let stale = fs::remove_file(image.dir.join("stamp"));
    drop(stale);
    rootfs::build(&image.dir, &image.rootfs())?;
    // Under another name until it is whole: a machine that still runs has the old one open.
    let new = image.dir.join("disk.new");
    step("lab: disk", || image.make_disk(&new))?;
    step("lab: fixtures", || image.prepare(&new))?;
    fs::rename(&new, image.disk()).context("cannot put the lab's disk in its place")?;
    fs::write(image.dir.join("stamp"), &image.stamp).context("cannot write the lab's stamp")?;
    Ok(image)
}

fn image_stamp() -> String {
    let mut hash = Sha256::new();
    for part in [INIT, INITRAMFS_INIT, AGENT, PREPARE, &rootfs::stamp(), &IMAGE_VERSION.to_string()] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Image {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn stamp(&self) -> &str {
        &self.stamp
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    pub(super) fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    /// A program of the root file system, run on the host through that file system's own loader.
    pub(super) fn program(&self, path: &str) -> Command {
        let root = self.rootfs();
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        let path_list = format!("{}:{}/pulseaudio", libraries.display(), libraries.display());
        let mut command =
            command(root.join("usr/lib64/ld-linux-x86-64.so.2"), ["--library-path", &path_list]);
        command.arg(root.join(path));
        command
    }

    /// The first root, and the files of one boot under `/lab.d`.
    pub(super) fn initrd(&self, files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
        let base = self.dir.join("initrd.base");
        let mut initrd = fs::read(&base).with_context(|| format!("cannot read {}", base.display()))?;
        let mut archive = Archive::new();
        archive.directory("lab.d", 0o755)?;
        for (name, data) in files {
            archive.file(&format!("lab.d/{name}"), 0o644, data)?;
        }
        initrd.extend(archive.finish()?);
        Ok(initrd)
    }

    fn is_current(&self) -> bool {
        fs::read_to_string(self.dir.join("stamp")).is_ok_and(|stamp| stamp == self.stamp)
    }

    fn make_disk(&self, disk: &Path) -> Result<()> {
        let root = self.rootfs();
        let own = root.join("lab");
        fs::create_dir_all(&own)?;
        write_executable(&own.join("init"), INIT)?;
        write_executable(&own.join("prepare"), PREPARE)?;
        fs::write(own.join("agent.py"), AGENT)?;
        self.make_initrd_base()?;
        let file = fs::File::create(disk).with_context(|| format!("cannot create {}", disk.display()))?;
        file.set_len(DISK_BYTES)?;
        drop(file);
        let mut mke2fs = command("mke2fs", ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-L", "lab"]);
        mke2fs.args(["-E", "lazy_itable_init=1,nodiscard", "-d"]).arg(&root).arg(disk);
        run(&mut mke2fs)
    }

    fn make_initrd_base(&self) -> Result<()> {
        let root = self.rootfs();
        let mut archive = Archive::new();
        for dir in ["bin", "dev", "mod", "root"] {
            archive.directory(dir, 0o755)?;
        }
        archive.character_device("dev/console", 0o600, 5, 1)?;
        archive.file("init", 0o755, INITRAMFS_INIT.as_bytes())?;
        archive.file("bin/busybox", 0o755, &fs::read(root.join("usr/bin/busybox"))?)?;
        archive.file("mod/virtio_blk.ko", 0o644, &fs::read(rootfs::module(&root, "virtio_blk.ko")?)?)?;
        fs::write(self.dir.join("initrd.base"), archive.finish()?).context("cannot write the lab's initramfs")
    }

    /// One boot with the disk writable, so that no later run pays for the fixtures.
    fn prepare(&self, disk: &Path) -> Result<()> {
        let job = Job::new(["/lab/prepare"]).timeout(Duration::from_secs(600));
        let mut log = Vec::new();
        let status = once::execute_writable(self, disk, &job, &mut |_, bytes| log.extend(bytes))?;
        let path = self.dir.join("prepare.log");
        fs::write(&path, &log).with_context(|| format!("cannot write {}", path.display()))?;
        if status != 0 {
            bail!("/lab/prepare ended with status {status}; {} ends:\n{}", path.display(), tail(&path, 8));
        }
        Ok(())
    }
}

fn write_executable(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Runs a long step of the build with its output in a log.
pub(super) fn logged(dir: &Path, name: &str, command: &mut Command) -> Result<()> {
    step(&format!("lab: {name}"), || {
        run_logged(command, &dir.join(format!("{}.log", name.replace(' ', "-"))))
    })
}
