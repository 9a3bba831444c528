//! The places of the project on this machine.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nacre_guest_kernel_config::cache::cache_dir;

/// The source tree, its target directory and the cache.
pub(crate) struct Project {
    /// Root of the source tree.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
    /// Kernel and lab, kept between clones.
    pub(crate) cache: PathBuf,
}

impl Project {
    /// Finds the tree that this xtask was built from.
    pub(crate) fn find() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.ancestors().nth(2).context("xtask is not in tools/xtask of a tree")?;
        let root = root.canonicalize().with_context(|| format!("no tree at {}", root.display()))?;
        let target = match std::env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => std::path::absolute(root.join(dir))?,
            None => root.join("target"),
        };
        fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
        let cache = cache_dir().context("neither NACRE_CACHE nor HOME is set: no place for the cache")?;
        Ok(Self { root, target, cache })
    }

    /// The installation that `build` lays out: `bin` and `guest`.
    pub(crate) fn install_dir(&self) -> PathBuf {
        self.target.join("nacre")
    }

    /// Programs of the installation.
    pub(crate) fn bin_dir(&self) -> PathBuf {
        self.install_dir().join("bin")
    }

    /// Guest kernel and initramfs, as `guest` makes them.
    pub(crate) fn guest_dir(&self) -> PathBuf {
        self.target.join("guest")
    }
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}
