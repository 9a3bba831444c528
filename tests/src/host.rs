//! Things of the host that a test makes and that go with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sandbox::Outcome;

/// A loop device, by its path.
pub struct LoopDevice(pub String);

impl LoopDevice {
    /// Of a file.
    ///
    /// # Panics
    /// Where there is none.
    pub fn on(file: &Path) -> Self {
        let out = Outcome::of(Command::new("losetup").args(["-f", "--show"]).arg(file)).ok();
        Self(out.text().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// A tmpfs that everybody may write to, by its path.
pub struct Tmpfs(pub PathBuf);

impl Tmpfs {
    /// Of this size (`1m`), on a directory that it makes.
    ///
    /// # Panics
    /// Where it cannot be mounted.
    pub fn on(path: PathBuf, size: &str) -> Self {
        fs::create_dir(&path).expect("a directory");
        let options = format!("size={size},mode=0777");
        Outcome::of(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&path)).ok();
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
