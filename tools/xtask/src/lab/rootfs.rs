//! The lab's root file system: Debian trixie with what the lab and the peers need, a few packages from sid.
//!
//! The mirror is the one that this machine's own apt uses; no other host is ever asked.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::image::logged;
use crate::process::{command, output, run};

const SUITE: &str = "trixie";

/// From [`SUITE`]: the machine itself, tools, and peers to compare with.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "crun",
    "docker-registry",
    "e2fsprogs",
    "erofs-utils",
    "fuse-overlayfs",
    "hyperfine",
    "iperf3",
    "iproute2",
    "iptables",
    "jq",
    "kmod",
    "linux-image-cloud-amd64",
    "nftables",
    "podman",
    "procps",
    "python3-minimal",
    "qemu-system-x86",
    "runc",
    "skopeo",
    "socat",
    "strace",
    "virtiofsd",
    "xz-utils",
];

/// From sid, since later work needs their newer versions (containerd's Sandbox API, Docker's runtimes by type).
const NEWER_PACKAGES: &[&str] =
    &["containerd", "containernetworking-plugins", "docker-cli", "docker-compose", "docker.io", "umoci"];

/// From [`SUITE`] too, unpacked into a folder of its own: the containerd that many nodes still run.
const OLDER_CONTAINERD: (&str, &str) = ("containerd", "opt/containerd-1.7");

/// Parts of packages that a machine without people and firmware does without.
const UNUSED: &[&str] =
    &["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/OVMF", "usr/share/AAVMF"];

/// What the root file system depends on.
pub(super) fn stamp() -> String {
    let (older, _) = OLDER_CONTAINERD;
    format!("3 {SUITE} {},{older} sid {}", PACKAGES.join(","), NEWER_PACKAGES.join(","))
}

/// Builds the root file system and, beside it, the uncompressed kernel, unless they are current.
pub(super) fn build(dir: &Path, root: &Path) -> Result<()> {
    let stamp_file = dir.join("rootfs.stamp");
    if fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp()) {
        return Ok(());
    }
    // A stamp that is not there is as good as one that was removed.
    let _ = fs::remove_file(&stamp_file);
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    let mirror = mirror()?;
    let mut debootstrap = command("debootstrap", ["--variant=minbase"]);
    debootstrap.arg(format!("--include={}", PACKAGES.join(","))).arg(SUITE).arg(root).arg(&mirror);
    logged(dir, "debootstrap", &mut debootstrap)?;
    add_newer(dir, root, &mirror)?;
    kernel(root, &dir.join("vmlinux"))?;
    configure(root)?;
    for path in UNUSED.iter().chain(&["boot", "var/cache/apt", "var/lib/apt/lists"]) {
        empty(&root.join(path))?;
    }
    fs::write(stamp_file, stamp()).context("cannot write the stamp of the lab's root file system")
}

/// The first Debian mirror of this machine's apt sources.
fn mirror() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    files
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "list" || e == "sources"))
        .filter_map(|path| fs::read_to_string(path).ok())
        .find_map(|text| mirror_of(&text))
        .context("no Debian mirror in /etc/apt/sources.list or sources.list.d")
}

/// The first source of the main archive in a file of either apt format.
fn mirror_of(text: &str) -> Option<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace)
        .find(|word| {
            let word = word.trim_end_matches('/');
            (word.starts_with("http://") || word.starts_with("https://")) && word.ends_with("/debian")
        })
        .map(str::to_owned)
}

fn add_newer(dir: &Path, root: &Path, mirror: &str) -> Result<()> {
    let apt = root.join("etc/apt");
    fs::write(apt.join("sources.list"), format!("deb {mirror} {SUITE} main\ndeb {mirror} sid main\n"))?;
    let pin = "Package: *\nPin: release n=sid\nPin-Priority: 100\n";
    fs::write(apt.join("preferences.d/sid"), pin)?;
    // How this machine reaches its mirror, proxies included, holds in there too.
    let settings = output(&mut command("apt-config", ["dump", "Acquire"]))?;
    fs::write(apt.join("apt.conf.d/90host"), settings)?;
    fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf")).context("cannot copy /etc/resolv.conf")?;
    let no_services = root.join("usr/sbin/policy-rc.d");
    fs::write(&no_services, "#!/bin/sh\nexit 101\n")?;
    run(&mut command("chmod", ["755".as_ref(), no_services.as_os_str()]))?;

    logged(dir, "apt-get update", chroot(root, "apt-get").args(["update"]))?;
    let mut install = chroot(root, "apt-get");
    install.args(["install", "-y", "--no-install-recommends", "-t", "sid"]).args(NEWER_PACKAGES);
    logged(dir, "apt-get install", &mut install)?;
    unpack_older(dir, root)?;

    for name in ["sources.list", "preferences.d/sid", "apt.conf.d/90host"] {
        fs::remove_file(apt.join(name))?;
    }
    fs::remove_file(no_services)?;
    Ok(())
}

fn unpack_older(dir: &Path, root: &Path) -> Result<()> {
    let (package, to) = OLDER_CONTAINERD;
    let script = format!(
        "cd /tmp && apt-get download {package}/{SUITE} && dpkg-deb -x {package}_*.deb /{to} && rm {package}_*.deb"
    );
    logged(dir, "apt-get download", chroot(root, "sh").args(["-c", &script]))
}

fn chroot(root: &Path, program: &str) -> Command {
    let mut chroot = command("chroot", [root]);
    chroot.arg(program).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
    chroot.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    chroot
}

/// Settings of the machine and its peers.
fn configure(root: &Path) -> Result<()> {
    let containers = root.join("etc/containers");
    fs::create_dir_all(&containers)?;
    fs::create_dir_all(root.join("lab"))?;
    fs::write(root.join("etc/hostname"), "lab\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost lab\n")?;
    fs::write(root.join("etc/resolv.conf"), "")?;
    fs::write(
        containers.join("containers.conf"),
        "[containers]\nlog_driver=\"k8s-file\"\n[engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\n",
    )?;
    fs::write(
        containers.join("storage.conf"),
        "[storage]\ndriver=\"overlay\"\nrunroot=\"/run/containers/storage\"\n\
         graphroot=\"/var/lib/containers/storage\"\n",
    )?;
    fs::write(containers.join("policy.json"), "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}\n")?;
    Ok(())
}

/// Takes the ELF kernel out of the packaged one, which QEMU then starts directly, and unpacks the modules:
/// decompressing either in the emulated machine would cost seconds of every start.
fn kernel(root: &Path, to: &Path) -> Result<()> {
    let release = kernel_release(root)?;
    let packed =
        fs::read(root.join(format!("boot/vmlinuz-{release}"))).context("cannot read the lab's kernel")?;
    let elf = extract_elf(&packed)?;
    fs::write(to, elf).with_context(|| format!("cannot write {}", to.display()))?;
    let modules = root.join("usr/lib/modules").join(&release);
    let mut unpack = command("find", [&modules]);
    run(unpack.args(["-name", "*.ko.xz", "-exec", "xz", "-dqf", "{}", "+"]))?;
    run(chroot(root, "depmod").arg(&release).stderr(Stdio::null()))
}

fn kernel_release(root: &Path) -> Result<String> {
    let dir = root.join("usr/lib/modules");
    let mut names: Vec<String> = fs::read_dir(&dir)
        .with_context(|| format!("no kernel in {}", dir.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names.pop().with_context(|| format!("no kernel in {}", dir.display()))
}

/// A module's file.
pub(super) fn module(root: &Path, name: &str) -> Result<PathBuf> {
    let dir = root.join("usr/lib/modules").join(kernel_release(root)?);
    let found = output(command("find", [&dir]).args(["-name", name]))?;
    let first = found.lines().next().with_context(|| format!("no module {name} in {}", dir.display()))?;
    Ok(PathBuf::from(first))
}

/// The payload of a compressed kernel: the first stretch that unpacks to an ELF file.
fn extract_elf(packed: &[u8]) -> Result<Vec<u8>> {
    let formats: [(&[u8], &str); 3] =
        [(b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz"), (b"\x1f\x8b\x08", "gzip")];
    for (magic, program) in formats {
        for start in positions(packed, magic) {
            let elf = unpack(program, &packed[start..])?;
            if elf.starts_with(b"\x7fELF") {
                return Ok(elf);
            }
        }
    }
    bail!("no ELF file in the lab's kernel");
}

fn positions<'a>(bytes: &'a [u8], magic: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    (0..bytes.len().saturating_sub(magic.len())).filter(move |&at| bytes[at..].starts_with(magic))
}

/// Unpacks as far as it goes: what follows the payload is an error to the program, and none to us.
fn unpack(program: &str, packed: &[u8]) -> Result<Vec<u8>> {
    let mut child = command(program, ["-dc"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let mut stdin = child.stdin.take().context("no pipe to the unpacker")?;
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(packed));
        Ok(child.wait_with_output()?.stdout)
    })
}

fn empty(path: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        let removed = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_is_found_in_both_formats() {
        let new = "Types: deb\nURIs: http://mirror.test/debian-security\n\nURIs: http://mirror.test/debian\n";
        let old = "# comment\ndeb [arch=amd64] https://mirror.test/debian/ bookworm main\n";
        assert_eq!(mirror_of(new).as_deref(), Some("http://mirror.test/debian"));
        assert_eq!(mirror_of(old).as_deref(), Some("https://mirror.test/debian/"));
        assert_eq!(mirror_of("deb cdrom:[x]/ bookworm main"), None);
    }

    #[test]
    fn every_magic_is_tried() {
        assert_eq!(positions(b"abcabcab", b"ab").collect::<Vec<_>>(), [0, 3]);
    }
}
