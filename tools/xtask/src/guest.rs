//! `guest`: the kernel from its recipe and the initramfs with the agent, in `target/guest`.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use nacre_guest_kernel_config::fragments::Mitigations;
use nacre_guest_kernel_config::kernel::{self, Progress};
use nacre_guest_kernel_config::recipe::Recipe;

use crate::install;
use crate::packages::{self, Need};
use crate::process::step;
use crate::project::Project;

/// The two files that a VM boots from.
pub(crate) struct Guest {
    /// Kernel.
    pub(crate) vmlinux: PathBuf,
    /// Initramfs.
    pub(crate) initramfs: PathBuf,
}

/// `guest [--mitigations]`
#[derive(Args)]
pub(crate) struct Options {
    /// Build only a kernel that defends itself against its own processes, as target/guest/vmlinux-mitigations
    #[arg(long)]
    mitigations: bool,
}

/// Builds what was asked for.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    if !options.mitigations {
        return build(project).map(drop);
    }
    packages::ensure(&[Need::Compile, Need::Kernel])?;
    let dir = guest_dir(project)?;
    let to = dir.join("vmlinux-mitigations");
    step("guest kernel", || build_kernel(project, Mitigations::On, &to))?;
    eprintln!("    set assets.kernel in /etc/nacre/config.toml to {}", to.display());
    Ok(())
}

fn guest_dir(project: &Project) -> Result<PathBuf> {
    let dir = project.guest_dir();
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// Builds what is missing.
pub(crate) fn build(project: &Project) -> Result<Guest> {
    packages::ensure(&[Need::Compile, Need::Kernel])?;
    let dir = guest_dir(project)?;
    let guest = Guest { vmlinux: dir.join("vmlinux"), initramfs: dir.join("initramfs.cpio") };
    step("guest kernel", || build_kernel(project, Mitigations::Off, &guest.vmlinux))?;
    let agent = step("programs", || install::programs(project))?;
    write_initramfs(&agent, &guest.initramfs)?;
    Ok(guest)
}

fn build_kernel(project: &Project, mitigations: Mitigations, to: &Path) -> Result<()> {
    let recipe = Recipe::detect(mitigations)?;
    let mut display = Display::new();
    let kernel = kernel::build(&project.cache, &recipe, &mut |progress| display.show(progress))?;
    display.end();
    let key = &recipe.key()[..12];
    let origin = if kernel.cached { "from the cache" } else { "built" };
    eprintln!("    Linux {} {origin}, key {key}", recipe.source_version);
    copy_if_changed(&kernel.vmlinux, to)
}

fn write_initramfs(agent: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(agent).with_context(|| format!("cannot read {}", agent.display()))?;
    write_if_changed(to, &nacre_guest_kernel_config::initramfs::build(&bytes)?)
}

/// Copies a file unless the target has the same bytes: a build that changes nothing touches nothing.
pub(crate) fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write_if_changed(to, &bytes)?;
    let mode = fs::metadata(from)?.permissions();
    fs::set_permissions(to, mode).with_context(|| format!("cannot set the mode of {}", to.display()))
}

/// Writes a file in one step, unless it has these bytes already.
pub(crate) fn write_if_changed(to: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    // A new file instead of new bytes in the old one, which a running VM may have open.
    let new = to.with_extension("new");
    fs::write(&new, bytes).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, to).with_context(|| format!("cannot write {}", to.display()))
}

/// A build's progress: one line that changes on a terminal, a line now and then elsewhere.
struct Display {
    terminal: bool,
    start: Instant,
    last: Option<Instant>,
}

impl Display {
    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), start: Instant::now(), last: None }
    }

    fn show(&mut self, progress: Progress) {
        let pause = if self.terminal { Duration::from_millis(200) } else { Duration::from_secs(20) };
        let compiling = matches!(progress, Progress::Compile { .. });
        if compiling && self.last.is_some_and(|last| last.elapsed() < pause) {
            return;
        }
        let text = match progress {
            Progress::Unpack => "unpacking the source".to_owned(),
            Progress::Configure => "configuring".to_owned(),
            Progress::Compile { done, percent } => {
                self.last = Some(Instant::now());
                format!("compiling: {percent} %, {done} files, {} s", self.start.elapsed().as_secs())
            }
        };
        if self.terminal {
            eprint!("\r\x1b[K    {text}");
            // A progress line that cannot be shown is no reason to stop.
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("    {text}");
        }
    }

    fn end(&self) {
        if self.terminal && self.last.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
