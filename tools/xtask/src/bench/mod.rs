//! `bench`: nacre and its peers, measured in one run, against the bars that must hold.
//!
//! ```text
//! cargo xtask bench          builds, then runs itself where KVM works, on an instruction-counted machine:
//!   xtask bench-inside DIR   inside.rs: copies everything to memory, measures in interleaved rounds
//! containerd.rs              the same of `cargo xtask bench containerd`: pods beside those of runc on one containerd
//! figures.rs                 medians, spread, bars, table, JSON
//! memory.rs                  what a process holds, without the guest's memory
//! ```
//!
//! On the counted clock a millisecond is a million instructions: figures repeat whatever else the machine does,
//! and compare programs that ran on the same clock. They are no times of real hardware.

mod containerd;
mod figures;
mod inside;
pub(crate) mod memory;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::install;
use crate::lab::{self, Job, Place};
use crate::packages::{self, Need};
use crate::process::step;
use crate::project::Project;

pub(crate) use inside::{Part, measure};

/// By which door containers are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Door {
    /// The command line, beside those of runc and crun.
    Nacre,
    /// containerd's, beside runc behind the same.
    Containerd,
}

impl Door {
    fn parts(self) -> &'static [Part] {
        match self {
            Self::Nacre => &[Part::Rounds, Part::Sequential, Part::Streams],
            Self::Containerd => &[Part::Pods, Part::PodStreams],
        }
    }

    fn figures(self) -> &'static [figures::Figure] {
        match self {
            Self::Nacre => figures::NACRE,
            Self::Containerd => figures::CONTAINERD,
        }
    }
}

/// One part takes up to half an hour of a core, the streams.
const LIMIT: Duration = Duration::from_secs(90 * 60);

/// Machines that a part may use up. One GiB of output in five or so meets a fault of the emulator's.
const TRIES: u32 = 8;

/// Measures everything and prints the table; fails where a bar does not hold.
/// A `part` alone, where one is named.
pub(crate) fn run(
    project: &Project,
    door: Door,
    part: Option<Part>,
    json: Option<&Path>,
) -> Result<ExitCode> {
    install::build(project)?;
    let place = lab::place();
    if place == Place::Direct {
        packages::ensure(&[Need::Direct])?;
    }
    let dir = project.target.join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let demo = project.target.join("demo");
    let script = project.root.join("tools/demo/image.sh");
    let image = Job::new([script.display().to_string(), demo.display().to_string()]);
    if step("test image", || lab::execute(project, place, &image, &mut lab::forward))? != 0 {
        bail!("making the image failed");
    }
    let results = dir.join("samples.json");
    let parts = match &part {
        Some(part) if door.parts().contains(part) => std::slice::from_ref(part),
        Some(part) => bail!("{} is no part of this benchmark", part.name()),
        None => door.parts(),
    };
    step("measuring", || measure_there(project, place, parts, &results))?;
    let text = fs::read(&results).with_context(|| format!("cannot read {}", results.display()))?;
    let samples = serde_json::from_slice(&text).context("the samples are no JSON")?;
    let report = figures::Report::new(&samples, door.figures(), part.is_none(), place)?;
    print!("{}", report.table());
    if let Some(path) = json {
        let text = format!("{:#}\n", report.json());
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs this program's other half where KVM works, part by part. A machine that hangs is replaced by another, which goes on
/// with what is missing: the two sides of every comparison come from one machine.
fn measure_there(project: &Project, place: Place, parts: &[Part], results: &Path) -> Result<()> {
    let own = std::env::current_exe().context("cannot tell where xtask is")?;
    // What an earlier run left must not pass for this one's.
    let _ = fs::remove_file(results);
    for part in parts {
        measure_part(project, place, &own, *part, results)?;
    }
    Ok(())
}

fn measure_part(project: &Project, place: Place, own: &Path, part: Part, results: &Path) -> Result<()> {
    let inside = [&own.display().to_string(), "bench-inside", part.name(), &results.display().to_string()];
    // containerd and its shims are found by name; from memory, since waiting for the host would be counted.
    let script = format!(
        "cp -a {install} {image} /tmp/ && export PATH=/tmp/nacre/bin:$PATH NACRE_TEST_IMAGE=oci:/tmp/image:python && exec \"$@\"",
        install = quoted(&project.install_dir())?,
        image = quoted(&project.target.join("demo/image"))?,
    );
    let words = [&["sh", "-c", &script, "sh"], &inside[..]].concat();
    let job = Job { kind: part.kind(), silence: Some(part.silence()), ..Job::new(words) }.timeout(LIMIT);
    for _ in 0..TRIES {
        // No machine stands in for one whose processor is real.
        match lab::execute(project, place, &job, &mut lab::forward) {
            Ok(0) => return Ok(()),
            Ok(lab::TIMED_OUT) if place == Place::Emulated => eprintln!("    another machine goes on"),
            Ok(status) => bail!("measuring {} ended with status {status}", part.name()),
            Err(error) if place == Place::Emulated => eprintln!("    {error:#}\n    another machine goes on"),
            Err(error) => return Err(error),
        }
    }
    bail!("{TRIES} machines hung or lost a VM while they measured {}", part.name())
}

/// For a shell.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().context("the project's path is not UTF-8")?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}
