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
use crate::process::{command, run, step};
use crate::project::Project;

/// A program of the installation.
struct Program {
    package: &'static str,
    name: &'static str,
    /// Linked with no shared library: starts faster, and opens no path when it does.
    is_static: bool,
}

const PROGRAMS: &[Program] = &[
    Program { package: "nacre-cli", name: "nacre", is_static: false },
    Program { package: "nacre-shim", name: "containerd-shim-nacre-v2", is_static: true },
    Program { package: "nacre-vmm", name: "nacre-vmm", is_static: true },
    Program { package: "nacre-fs", name: "nacre-fs", is_static: false },
];

/// Builds and lays out everything that an installation has.
pub(crate) fn build(project: &Project) -> Result<()> {
    packages::ensure(&[Need::Compile])?;
    let guest = guest::build(project)?;
    step("binaries", || binaries(project))?;
    let dir = project.install_dir().join("guest");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    copy_if_changed(&guest.vmlinux, &dir.join("vmlinux"))?;
    copy_if_changed(&guest.initramfs, &dir.join("initramfs.cpio"))
}

fn binaries(project: &Project) -> Result<()> {
    let bin = project.bin_dir();
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    for program in PROGRAMS {
        let built = if program.is_static {
            static_binary(project, program.package, program.name)?
        } else {
            dynamic_binary(project, program.package, program.name)?
        };
        copy_if_changed(&built, &bin.join(program.name))?;
    }
    Ok(())
}

/// Builds one program with glibc linked in, and checks that it is static.
pub(crate) fn static_binary(project: &Project, package: &str, name: &str) -> Result<PathBuf> {
    let mut build = cargo(project);
    build.args(["rustc", "--release", "--quiet", "-p", package, "--bin", name]);
    build.args(["--", "-C", "target-feature=+crt-static"]);
    run(&mut build)?;
    let built = project.target.join("release").join(name);
    if has_interpreter(&built)? {
        bail!("{} wants a dynamic loader", built.display());
    }
    Ok(built)
}

fn dynamic_binary(project: &Project, package: &str, name: &str) -> Result<PathBuf> {
    run(cargo(project).args(["build", "--release", "--quiet", "-p", package, "--bin", name]))?;
    Ok(project.target.join("release").join(name))
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
