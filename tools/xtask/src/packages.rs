//! Debian packages that the host must have, installed where this process may.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nacre_guest_kernel_config::recipe::BUILD_PACKAGES;

use crate::process::{command, run};
use crate::project::is_root;

/// What a task needs besides a Rust toolchain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Linking Rust programs.
    Compile,
    /// Building the guest kernel.
    Kernel,
    /// Component tests: oracles and host tools.
    Test,
    /// Building and running the lab; its QEMU and virtiofsd come with its own root file system.
    Lab,
    /// Running demo and tests on this machine, where KVM works in hardware.
    Direct,
}

impl Need {
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Compile => &["gcc", "libc6-dev"],
            Self::Kernel => BUILD_PACKAGES,
            Self::Test => &["erofs-utils", "iproute2", "util-linux"],
            Self::Lab => &["debootstrap", "debian-archive-keyring", "e2fsprogs", "zstd", "xz-utils"],
            Self::Direct => &[
                "busybox-static",
                "containerd",
                "crun",
                "docker-registry",
                "erofs-utils",
                "iproute2",
                "jq",
                "python3-minimal",
                "runc",
                "skopeo",
                "strace",
                "umoci",
            ],
        }
    }
}

/// Makes sure that the packages of every need are installed.
///
/// # Errors
/// Where some are missing and this process is not root, naming the command to run.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let mut missing: Vec<&str> = Vec::new();
    for package in needs.iter().flat_map(|need| need.packages()) {
        if !missing.contains(package) && !installed(package)? {
            missing.push(package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() {
        bail!("packages are missing; run: sudo apt-get install {}", missing.join(" "));
    }
    eprintln!("==> installing {}", missing.join(" "));
    run(apt().arg("update").arg("-qq"))?;
    run(apt().args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing))
}

fn apt() -> Command {
    let mut apt = command("apt-get", ["-o", "DPkg::Lock::Timeout=120"]);
    apt.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
    apt
}

fn installed(package: &str) -> Result<bool> {
    let out = command("dpkg-query", ["-W", "-f", "${db:Status-Status}", package])
        .output()
        .context("cannot run dpkg-query: the project builds on Debian 12 and 13")?;
    Ok(out.status.success() && out.stdout == b"installed")
}
