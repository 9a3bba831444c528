//! `lab`: a machine in which /dev/kvm works, and running commands as root in it.
//!
//! Where this machine's KVM runs ring 0 in hardware, that is this machine. Elsewhere it is a small Debian under
//! QEMU's software emulation, with AMD SVM emulated, so that KVM works inside it at emulated speed.
//!
//! ```text
//! image.rs    L1's disk and kernel: rootfs.rs (debootstrap), initrd, one boot that prepares fixtures
//! machine.rs  the outer QEMU with its virtiofsd
//! kept.rs     a machine that serves commands (client.rs <-> tools/lab/agent.py) and ends itself when idle
//! once.rs     a machine for one command: fresh, instruction-counted, or with its disk writable
//! ```
//!
//! Two clocks: the kept machine runs on two cores as fast as it can, and its times depend on this machine's load;
//! an instruction-counted machine advances its clock one nanosecond for each instruction it executes, so its
//! times repeat within 1 % and may be compared.

mod client;
mod image;
mod kept;
mod machine;
mod once;
mod rootfs;

use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nacre_kvm_probe::Ring0;

use crate::process::command;
use crate::project::{Project, is_root};

/// `lab [OPTIONS] -- CMD ARG...`
#[derive(Args)]
pub(crate) struct Options {
    /// One vCPU, and a clock that counts instructions: for times that are reported or compared
    #[arg(long)]
    icount: bool,
    /// A machine of its own for this command
    #[arg(long)]
    fresh: bool,
    /// End the command after this many seconds (status 124)
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// The emulated machine even where KVM works here
    #[arg(long)]
    emulated: bool,
    /// Only build the lab
    #[arg(long)]
    build: bool,
    /// What to run, as root, in the project's tree
    #[arg(last = true, required_unless_present = "build")]
    command: Vec<String>,
}

/// Where a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this machine.
    Direct,
    /// In the emulated machine.
    Emulated,
}

/// Which emulated machine a command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The one that is kept between commands.
    Kept,
    /// One of its own, for this command alone.
    Fresh,
    /// One of its own whose clock counts instructions, 1 ns each.
    Counted,
}

/// Which of the two outputs some bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A command to run as root, in the project's tree, with nacre on its PATH.
pub(crate) struct Job {
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Which machine it gets, where it does not run directly.
    pub(crate) kind: Kind,
    /// After which it is ended.
    pub(crate) timeout: Option<Duration>,
    /// A machine of its own that says nothing for so long hangs, and is ended as if its time was over.
    pub(crate) silence: Option<Duration>,
    /// Whether it gets our standard input.
    pub(crate) stdin: bool,
}

impl Job {
    /// A command in the kept machine, without input or time limit.
    pub(crate) fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        let command = command.into_iter().map(Into::into).collect();
        Self { command, kind: Kind::Kept, timeout: None, silence: None, stdin: false }
    }

    /// The same command with a time limit.
    pub(crate) fn timeout(self, limit: Duration) -> Self {
        Self { timeout: Some(limit), ..self }
    }
}

/// Status of a job that ran out of time, as `timeout` has it.
pub(crate) const TIMED_OUT: i32 = 124;

/// Carries out `cargo xtask lab`.
pub(crate) fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    let place = if options.emulated || options.icount || options.build { Place::Emulated } else { place() };
    if options.build {
        image::build(project)?;
        return Ok(ExitCode::SUCCESS);
    }
    let job = Job {
        command: options.command.clone(),
        kind: match (options.icount, options.fresh) {
            (true, _) => Kind::Counted,
            (_, true) => Kind::Fresh,
            _ => Kind::Kept,
        },
        timeout: options.timeout.map(Duration::from_secs),
        silence: None,
        stdin: !options.icount && !options.fresh,
    };
    let status = execute(project, place, &job, &mut forward)?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}

/// Decides by a measurement where commands run.
pub(crate) fn place() -> Place {
    match Ring0::measure() {
        Ok(speed) if speed.is_hardware() => return Place::Direct,
        Ok(speed) => eprintln!("    KVM interprets ring 0 ({speed}): running in the lab"),
        Err(error) => eprintln!("    no KVM ({:#}): running in the lab", anyhow::Error::new(error)),
    }
    Place::Emulated
}

/// Runs a job and returns its exit status.
///
/// # Errors
/// Where the lab cannot be built or started, or ends by itself; a job that fails is no error.
pub(crate) fn execute(
    project: &Project,
    place: Place,
    job: &Job,
    sink: &mut dyn FnMut(Stream, &[u8]),
) -> Result<i32> {
    if !is_root() {
        bail!("this needs root: run it with sudo -E");
    }
    match (place, job.kind) {
        (Place::Direct, _) => direct(project, job, sink),
        (Place::Emulated, Kind::Kept) => kept::execute(project, &image::build(project)?, job, sink),
        (Place::Emulated, Kind::Fresh | Kind::Counted) => {
            once::execute(project, &image::build(project)?, job, sink)
        }
    }
}

/// The sink that passes output on to our own.
pub(crate) fn forward(stream: Stream, bytes: &[u8]) {
    // Nobody reads any more: the job still goes on to its end and gives its status.
    let _ = match stream {
        Stream::Out => std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()),
        Stream::Err => std::io::stderr().write_all(bytes),
    };
}

fn direct(project: &Project, job: &Job, sink: &mut dyn FnMut(Stream, &[u8])) -> Result<i32> {
    let (program, arguments) = job.command.split_first().context("no command")?;
    let mut child = match job.timeout {
        Some(limit) => {
            let mut timeout = command("timeout", ["-k", "5"]);
            timeout.arg(limit.as_secs().to_string()).arg(program);
            timeout
        }
        None => Command::new(program),
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(project.bin_dir()).chain(std::env::split_paths(&path));
    child.args(arguments).current_dir(&project.root).env("PATH", std::env::join_paths(paths)?);
    child.stdin(if job.stdin { Stdio::inherit() } else { Stdio::null() });
    let started = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = started.with_context(|| format!("cannot run {program}"))?;
    once::pump(child.stdout.take(), child.stderr.take(), sink);
    let status = child.wait()?;
    Ok(status.code().unwrap_or_else(|| {
        use std::os::unix::process::ExitStatusExt as _;
        128 + status.signal().unwrap_or(0)
    }))
}
