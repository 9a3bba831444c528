//! `conformance`: public suites of the field, run against nacre and, beside it, runc.
//!
//! ```text
//! programs.rs  builds the suites' Go programs, at the versions that tools/conformance pins
//! critest.rs   the CRI validation suite: one machine for each runtime
//! report.rs    reads what the suite reports; table of every case, cause of every difference
//! stress.rs    containerd-stress, and a census of the machine after it
//! growth.rs    memory of the processes while it runs
//! ```
//!
//! `containerd` is no suite of others: our own end-to-end tests of pods ([`crate::suite`]), with a newer containerd.
//!
//! None of it is part of `test`: the suites come over the network, and take an hour and more in the lab.

mod critest;
mod growth;
mod programs;
mod report;
mod stress;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::install;
use crate::lab::{self, Place};
use crate::packages::{self, Need};
use crate::process::step;
use crate::project::Project;
use crate::suite;

pub(crate) use stress::{Inside, measure};

/// Names of the tests that need a CRI of containerd 2 and share one.
const PODS: &str = "pods::";

/// `conformance [SUITE] [OPTIONS]`
#[derive(Args)]
pub(crate) struct Options {
    /// Which suite
    #[arg(default_value = "all")]
    suite: Suite,
    /// critest: only these files of the suite, without `.go`; the results of the others stay
    #[arg(long, value_name = "NAME")]
    file: Vec<String>,
    /// critest: only cases whose name has this regular expression; the results of the others stay
    #[arg(long, value_name = "REGEX")]
    case: Vec<String>,
    /// critest: seconds for each runtime
    #[arg(long, value_name = "SECONDS", default_value_t = 3 * 3600)]
    limit: u64,
    /// critest: run nothing, make the table of the results that are there
    #[arg(long)]
    report: bool,
    /// critest: put the table into docs/conformance.md
    #[arg(long)]
    update: bool,
    /// stress: containers to start
    #[arg(long, value_name = "N", default_value_t = 500)]
    containers: u32,
    /// stress: how many at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    concurrency: u32,
}

/// What there is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// The CRI validation suite of cri-tools
    Critest,
    /// containerd-stress
    Stress,
    /// The end-to-end tests of pods with the containerd that `tools/conformance/containerd` pins
    Containerd,
    /// All of them
    All,
}

/// Builds nacre and the suites, and runs them.
pub(crate) fn run(project: &Project, options: &Options) -> Result<ExitCode> {
    if options.report {
        return Ok(code(critest::report(project, options.update)?));
    }
    install::build(project)?;
    let place = lab::place();
    if place == Place::Direct {
        packages::ensure(&[Need::Direct])?;
    }
    let is_wanted = |suite: Suite| options.suite == suite || options.suite == Suite::All;
    let mut holds = true;
    if is_wanted(Suite::Critest) {
        holds &= critest::run(project, place, options)?;
    }
    if is_wanted(Suite::Stress) {
        holds &= stress::run(project, place, options)?;
    }
    if is_wanted(Suite::Containerd) {
        let dir = step("containerd: build", || programs::containerd(project))?;
        holds &= suite::with_containerd(project, PODS, &dir)? == ExitCode::SUCCESS;
    }
    Ok(code(holds))
}

fn code(holds: bool) -> ExitCode {
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
