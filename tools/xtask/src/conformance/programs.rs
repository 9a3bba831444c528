//! The suites' programs. They are Go: each folder of `tools/conformance` with a `go.mod` pins one of them, with the
//! hashes of everything it is built from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{command, output, run_logged};
use crate::project::Project;

/// Where everything of the suites lies: programs in `bin`, images, results.
pub(super) fn directory(project: &Project) -> PathBuf {
    project.target.join("conformance")
}

/// critest: a suite of Go tests, whose authors ship the test program too.
pub(super) fn critest(project: &Project) -> Result<()> {
    let module = module(project, "critest")?;
    build(&module, &bin(project)?, &["test", "-c", "-o"], "critest", "sigs.k8s.io/cri-tools/cmd/critest")
}

/// Programs of our own in the images.
pub(super) fn of_images(project: &Project) -> Result<()> {
    let (module, bin) = (module(project, "critest")?, bin(project)?);
    for program in ["pause", "nonewprivs"] {
        build(
            &module,
            &bin,
            &["build", "-ldflags", "-s -w", "-o"],
            program,
            &format!("./programs/{program}"),
        )?;
    }
    Ok(())
}

/// containerd-stress.
pub(super) fn stress(project: &Project) -> Result<()> {
    let module = module(project, "containerd")?;
    let package = "github.com/containerd/containerd/v2/cmd/containerd-stress";
    build(&module, &bin(project)?, &["build", "-ldflags", "-s -w", "-o"], "containerd-stress", package)
}

/// containerd, `ctr` and the shim of runc, in a directory of their own.
pub(super) fn containerd(project: &Project) -> Result<PathBuf> {
    let (module, bin) = (module(project, "containerd")?, bin(project)?.join("containerd"));
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    for name in ["containerd", "ctr", "containerd-shim-runc-v2"] {
        let package = format!("github.com/containerd/containerd/v2/cmd/{name}");
        // Snapshotters that need libraries of C, and that no test uses.
        let words = ["build", "-tags", "no_btrfs no_zfs", "-ldflags", "-s -w", "-o"];
        build(&module, &bin, &words, name, &package)?;
    }
    Ok(bin)
}

/// Version of a module that a folder pins.
pub(super) fn version(project: &Project, name: &str, module_path: &str) -> Result<String> {
    let module = module(project, name)?;
    let path = module.join("go.mod");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let version = text.lines().find_map(|line| line.split_once(module_path)?.1.split_whitespace().next());
    version.map(str::to_owned).with_context(|| format!("{} does not pin {module_path}", path.display()))
}

fn module(project: &Project, name: &str) -> Result<PathBuf> {
    if output(&mut command("go", ["version"])).is_err() {
        bail!(
            "the suites are built by Go, which is not on PATH (1.26.8 or later): https://go.dev/doc/install"
        );
    }
    Ok(project.root.join("tools/conformance").join(name))
}

fn bin(project: &Project) -> Result<PathBuf> {
    let bin = directory(project).join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    Ok(bin)
}

fn build(module: &Path, bin: &Path, words: &[&str], name: &str, package: &str) -> Result<()> {
    let mut go: Command = command("go", words);
    go.arg(bin.join(name)).arg(package).current_dir(module);
    // Static programs: they run in images without libraries, and in the lab.
    go.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly -trimpath -buildvcs=false");
    run_logged(&mut go, &bin.join(format!("{name}.log")))
}
