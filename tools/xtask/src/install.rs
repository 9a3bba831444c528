//! `build`: the release binaries, laid out as an installation in `target/nacre`.
//!
//! ```text
//! target/nacre/bin/    nacre  containerd-shim-nacre-v2  nacre-vmm  nacre-fs
//! target/nacre/guest/  vmlinux  initramfs.cpio
//! ```

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::guest::{self, copy_if_changed};
use crate::packages::{self, Need};
use crate::process::{command, run};
use crate::project::Project;

/// A program, of the host's installation or the guest's.
struct Program {
    package: &'static str,
    name: &'static str,
    /// Linked with no shared library: starts faster, and needs no file system.
    is_static: bool,
    /// Optimised for size.
    is_small: bool,
}

/// Static ones stand in `tools/rustc-static` too. `nacre` is not: it looks up names of registries as the host does.
const PROGRAMS: &[Program] = &[
    Program { package: "nacre-cli", name: "nacre", is_static: false, is_small: false },
    Program { package: "nacre-shim", name: "containerd-shim-nacre-v2", is_static: true, is_small: true },
    Program { package: "nacre-vmm", name: "nacre-vmm", is_static: true, is_small: false },
    Program { package: "nacre-fs", name: "nacre-fs", is_static: false, is_small: false },
    Program { package: "nacre-agent", name: AGENT, is_static: true, is_small: true },
];

/// The one that goes into the guest's initramfs.
const AGENT: &str = "nacre-agent";

/// Profiles of programs that are small, and of those that are not.
const PROFILES: [(bool, &str); 2] = [(true, "small"), (false, "release")];

/// Builds and lays out everything that an installation has.
pub(crate) fn build(project: &Project) -> Result<()> {
    let guest = guest::build(project)?;
    let bin = project.bin_dir();
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    for program in PROGRAMS.iter().filter(|program| program.name != AGENT) {
        copy_if_changed(&program.built(project), &bin.join(program.name))?;
    }
    let dir = project.install_dir().join("guest");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    copy_if_changed(&guest.vmlinux, &dir.join("vmlinux"))?;
    copy_if_changed(&guest.initramfs, &dir.join("initramfs.cpio"))
}

impl Program {
    fn built(&self, project: &Project) -> PathBuf {
        let profile = if self.is_small { "small" } else { "release" };
        project.target.join(profile).join(self.name)
    }
}

/// Builds every program, with one call of cargo for each profile, and gives the agent's path.
pub(crate) fn programs(project: &Project) -> Result<PathBuf> {
    packages::ensure(&[Need::Compile])?;
    for (is_small, profile) in PROFILES {
        let mut build = cargo(project);
        build.args(["build", "--profile", profile, "--locked"]);
        build.env("RUSTC_WORKSPACE_WRAPPER", project.root.join("tools/rustc-static"));
        for program in PROGRAMS.iter().filter(|program| program.is_small == is_small) {
            build.args(["-p", program.package, "--bin", program.name]);
        }
        run(&mut build)?;
    }
    for program in PROGRAMS.iter().filter(|program| program.is_static) {
        let path = program.built(project);
        if has_interpreter(&path)? {
            bail!("{} wants a dynamic loader", path.display());
        }
    }
    let agent = PROGRAMS.iter().find(|program| program.name == AGENT).context("no agent")?;
    Ok(agent.built(project))
}

/// Cargo in the project's tree.
pub(crate) fn cargo(project: &Project) -> std::process::Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = command(cargo, std::iter::empty::<&str>());
    command.current_dir(&project.root).env("CARGO_TARGET_DIR", &project.target);
    // Variables that `cargo xtask` set for this process are not meant for the next cargo.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command
}

/// Whether an ELF file asks for a dynamic loader (a program header of type PT_INTERP).
fn has_interpreter(path: &Path) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let elf = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let bytes = |at: usize, len: usize| elf.get(at..at + len).context("ELF file is cut short");
    let table = usize::try_from(u64::from_le_bytes(bytes(32, 8)?.try_into()?))?;
    let size = usize::from(u16::from_le_bytes(bytes(54, 2)?.try_into()?));
    let count = usize::from(u16::from_le_bytes(bytes(56, 2)?.try_into()?));
    for index in 0..count {
        if u32::from_le_bytes(bytes(table + index * size, 4)?.try_into()?) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}
