//! The kernel build: from the source package to a stripped, uncompressed `vmlinux` in the cache.
//!
//! One build at a time holds the cache's lock; it works in a directory of its own, which it removes at the end,
//! and only a finished, checked result takes its place under the key. The log stays beside it.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use crate::config::ConfigError;
use crate::recipe::{ENVIRONMENT, Recipe};
use crate::required::REQUIRED;

/// Largest `vmlinux` that is taken, in bytes: more is a setting that should not be there.
pub const MAX_VMLINUX_BYTES: u64 = 20_000_000;

/// Lines that `make vmlinux` prints for this configuration, near enough for a percentage.
const EXPECTED_LINES: u32 = 1960;

/// A build that gave no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file or directory of the cache.
    #[error("{what} {path}")]
    Io {
        /// What was tried, as "cannot write".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A step's program cannot be started.
    #[error("cannot run {program}")]
    Start {
        /// Program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step failed; the last lines of its output tell why.
    #[error("{step} failed ({status}); log {log}, which ends:\n{tail}")]
    Step {
        /// Which step.
        step: &'static str,
        /// How its program ended.
        status: std::process::ExitStatus,
        /// The whole output.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// Kconfig did not keep what was asked for.
    #[error("guest kernel configuration")]
    Config(#[from] ConfigError),
    /// The result is larger than it may be.
    #[error("vmlinux has {bytes} bytes, at most {MAX_VMLINUX_BYTES} are allowed")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Unpacking the source.
    Unpack,
    /// Making and checking the configuration.
    Configure,
    /// Compiling.
    Compile {
        /// Files done.
        done: u32,
        /// Of a hundred, 99 at most before the end.
        percent: u32,
    },
}

/// A kernel in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The image.
    pub vmlinux: PathBuf,
    /// It was there already.
    pub cached: bool,
}

/// The cache entry of a recipe.
fn entry(cache: &Path, recipe: &Recipe) -> PathBuf {
    cache.join("kernel").join(recipe.key())
}

/// The finished kernel of `recipe`, if `cache` has it.
pub fn cached(cache: &Path, recipe: &Recipe) -> Option<Kernel> {
    let vmlinux = entry(cache, recipe).join("vmlinux");
    vmlinux.is_file().then_some(Kernel { vmlinux, cached: true })
}

/// Gives the kernel of `recipe`, building it where `cache` does not have it yet.
///
/// # Errors
/// A failed step with the end of its log, a symbol that did not survive, or a result that is too large.
pub fn build(
    cache: &Path,
    recipe: &Recipe,
    progress: &mut dyn FnMut(Progress),
) -> Result<Kernel, KernelError> {
    if let Some(kernel) = cached(cache, recipe) {
        return Ok(kernel);
    }
    let dir = cache.join("kernel");
    create_dir(&dir)?;
    let lock_path = dir.join("lock");
    let lock = fs::File::create(&lock_path).map_err(io_error("cannot create", &lock_path))?;
    lock.lock().map_err(io_error("cannot lock", &lock_path))?;
    // Another process may have built it while this one waited.
    if let Some(kernel) = cached(cache, recipe) {
        return Ok(kernel);
    }
    let work = dir.join("work");
    remove_dir(&work)?;
    create_dir(&work)?;
    let job = Job { work: &work, log: dir.join("build.log") };
    let vmlinux = job.run(recipe, progress)?;
    let kernel = store(&vmlinux, &work, &entry(cache, recipe), recipe)?;
    remove_dir(&work)?;
    Ok(kernel)
}

/// Puts a result under its key in one step, so that no reader ever sees half of it.
fn store(vmlinux: &Path, work: &Path, entry: &Path, recipe: &Recipe) -> Result<Kernel, KernelError> {
    let finished = work.join("finished");
    create_dir(&finished)?;
    let image = finished.join("vmlinux");
    fs::rename(vmlinux, &image).map_err(io_error("cannot move", vmlinux))?;
    let config = finished.join("config");
    fs::write(&config, recipe.config.text()).map_err(io_error("cannot write", &config))?;
    let inputs = finished.join("inputs");
    let text = format!("{}\n{}\n", recipe.source_version, recipe.compiler);
    fs::write(&inputs, text).map_err(io_error("cannot write", &inputs))?;
    fs::rename(&finished, entry).map_err(io_error("cannot move to", entry))?;
    Ok(Kernel { vmlinux: entry.join("vmlinux"), cached: false })
}

/// The directories of one build.
struct Job<'a> {
    work: &'a Path,
    log: PathBuf,
}

impl Job<'_> {
    fn run(&self, recipe: &Recipe, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, KernelError> {
        let (source, out) = (self.work.join("src"), self.work.join("out"));
        create_dir(&source)?;
        create_dir(&out)?;
        fs::write(&self.log, "").map_err(io_error("cannot write", &self.log))?;

        progress(Progress::Unpack);
        let mut tar = command("tar");
        tar.arg("-xf").arg(&recipe.tarball).arg("-C").arg(&source).arg("--strip-components=1");
        self.step("unpacking the kernel source", tar, &mut |_| {})?;

        progress(Progress::Configure);
        self.configure(recipe, &source, &out)?;

        let jobs = thread::available_parallelism().map_or(1, |n| n.get() + 1);
        let mut make = self.make(&source, &out);
        make.arg(format!("-j{jobs}")).arg("vmlinux");
        let mut done = 0;
        self.step("compiling the kernel", make, &mut |line| {
            // "  CC      path", as quiet kbuild prints each command
            if line.starts_with("  ") {
                done += 1;
                progress(Progress::Compile { done, percent: (done * 100 / EXPECTED_LINES).min(99) });
            }
        })?;
        self.strip(&out)
    }

    fn configure(&self, recipe: &Recipe, source: &Path, out: &Path) -> Result<(), KernelError> {
        let asked = self.work.join("all.config");
        fs::write(&asked, recipe.config.text()).map_err(io_error("cannot write", &asked))?;
        let mut make = self.make(source, out);
        make.env("KCONFIG_ALLCONFIG", &asked).arg("allnoconfig");
        self.step("configuring the kernel", make, &mut |_| {})?;
        let dot_config = out.join(".config");
        let made = fs::read_to_string(&dot_config).map_err(io_error("cannot read", &dot_config))?;
        Ok(recipe.config.check(&made, REQUIRED)?)
    }

    fn make(&self, source: &Path, out: &Path) -> Command {
        let mut make = command("make");
        make.arg("-C").arg(source).arg(format!("O={}", out.display()));
        make
    }

    fn strip(&self, out: &Path) -> Result<PathBuf, KernelError> {
        let vmlinux = self.work.join("vmlinux");
        let mut strip = command("strip");
        strip.arg("-o").arg(&vmlinux).arg(out.join("vmlinux"));
        self.step("stripping the kernel", strip, &mut |_| {})?;
        let bytes = fs::metadata(&vmlinux).map_err(io_error("cannot read", &vmlinux))?.len();
        if bytes > MAX_VMLINUX_BYTES {
            return Err(KernelError::TooLarge { bytes });
        }
        Ok(vmlinux)
    }

    /// Runs one program with both outputs in the log, and gives each line to `line`.
    fn step(
        &self,
        step: &'static str,
        mut command: Command,
        line: &mut dyn FnMut(&str),
    ) -> Result<(), KernelError> {
        let mut log =
            fs::File::options().append(true).open(&self.log).map_err(io_error("cannot open", &self.log))?;
        let errors = log.try_clone().map_err(io_error("cannot open", &self.log))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn();
        let mut child = started.map_err(|source| KernelError::Start { program: program.clone(), source })?;
        if let Some(stdout) = child.stdout.take() {
            for text in BufReader::new(stdout).split(b'\n') {
                let text = text.map_err(io_error("cannot read the output of", Path::new(&program)))?;
                let text = String::from_utf8_lossy(&text);
                writeln!(log, "{text}").map_err(io_error("cannot write", &self.log))?;
                line(&text);
            }
        }
        let status = child.wait().map_err(|source| KernelError::Start { program, source })?;
        if status.success() {
            return Ok(());
        }
        Err(KernelError::Step { step, status, log: self.log.clone(), tail: tail(&self.log) })
    }
}

/// A program with nothing in its environment that could change the result.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(ENVIRONMENT.iter().copied());
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

fn create_dir(path: &Path) -> Result<(), KernelError> {
    fs::create_dir_all(path).map_err(io_error("cannot create", path))
}

fn remove_dir(path: &Path) -> Result<(), KernelError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("cannot remove", path)(error)),
        _ => Ok(()),
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Merged;
    use crate::fragments::{FRAGMENTS, OVERRIDES};

    fn recipe(tarball: PathBuf) -> Recipe {
        let config = Merged::new(FRAGMENTS, OVERRIDES).unwrap();
        Recipe { config, source_version: "1".into(), compiler: "gcc".into(), tarball }
    }

    #[test]
    fn cached_kernel_is_taken_without_a_build() {
        let cache = tempfile::tempdir().unwrap();
        let recipe = recipe(PathBuf::from("/nonexistent"));
        let entry = entry(cache.path(), &recipe);
        fs::create_dir_all(&entry).unwrap();
        fs::write(entry.join("vmlinux"), "kernel").unwrap();
        let kernel = build(cache.path(), &recipe, &mut |_| panic!("built")).unwrap();
        assert_eq!(kernel, Kernel { vmlinux: entry.join("vmlinux"), cached: true });
    }

    #[test]
    fn failed_step_tells_the_end_of_its_log_and_leaves_no_entry() {
        let cache = tempfile::tempdir().unwrap();
        let recipe = recipe(cache.path().join("missing.tar.xz"));
        let error = build(cache.path(), &recipe, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("unpacking the kernel source failed"), "{error}");
        assert!(error.contains("missing.tar.xz"), "{error}");
        assert_eq!(cached(cache.path(), &recipe), None);
    }

    #[test]
    fn result_is_stored_whole_under_its_key() {
        let cache = tempfile::tempdir().unwrap();
        let recipe = recipe(PathBuf::new());
        let work = cache.path().join("kernel/work");
        fs::create_dir_all(&work).unwrap();
        fs::write(work.join("vmlinux"), "kernel").unwrap();
        store(&work.join("vmlinux"), &work, &entry(cache.path(), &recipe), &recipe).unwrap();
        let kernel = cached(cache.path(), &recipe).unwrap();
        assert_eq!(fs::read(kernel.vmlinux).unwrap(), b"kernel");
    }
}
