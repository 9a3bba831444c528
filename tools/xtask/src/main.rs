//! The one door for developers: `cargo xtask COMMAND`.
//!
//! | module | command |
//! |---|---|
//! | [`check`] | `check`: what must hold before a commit |
//! | [`guest`] | `guest`: kernel and initramfs of the guest |
//! | [`install`] | `build`: the binaries, laid out as an installation |
//! | [`package`] | `package`: Debian package and archive of it |
//! | [`lab`] | `lab`: a machine with a working /dev/kvm, here or emulated |
//! | [`demo`], [`suite`], [`mod@bench`] | `demo`, `test` and `e2e`, `bench` |
//! | [`conformance`] | `conformance`: public suites of the field |
//!
//! [`project`] knows the places, [`packages`] what the host must have, [`process`] runs programs,
//! [`emulator`] what only an emulated machine does.

mod bench;
mod check;
mod conformance;
mod demo;
mod emulator;
mod guest;
mod install;
mod lab;
mod package;
mod packages;
mod process;
mod project;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::project::Project;

/// Builds, checks, tests and demonstrates nacre.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Format, lints, docs, unit tests, dependency table, doc links, spelling
    Check(check::Options),
    /// Build the guest kernel and the initramfs with the agent
    Guest(guest::Options),
    /// Build the release binaries and lay out an installation in target/nacre
    Build,
    /// Build and pack it: a Debian package and an archive
    Package(package::Options),
    /// Run a command as root where /dev/kvm works, with nacre on its PATH
    Lab(lab::Options),
    /// Everything there is to test; the last line is `N passed, N failed`
    Test(suite::Options),
    /// Only the end-to-end tests
    E2e(suite::Options),
    /// Build everything and run an image of a real registry in its own micro-VM
    Demo,
    /// Measure nacre and its peers in one run
    Bench {
        /// Whose door is measured
        #[arg(default_value = "nacre")]
        door: bench::Door,
        /// One part of it alone
        #[arg(long)]
        part: Option<bench::Part>,
        /// Write the figures to this file
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Run public suites against nacre, and against runc to compare
    Conformance(conformance::Options),
    /// The half of `bench` that runs where KVM works
    #[command(hide = true)]
    BenchInside {
        /// What to measure
        part: bench::Part,
        /// Where the samples go, and those of earlier machines are
        results: PathBuf,
    },
    /// The half of `conformance stress` that runs where KVM works
    #[command(hide = true)]
    StressInside(conformance::Inside),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    let project = Project::find()?;
    match task {
        Task::Check(options) => check::run_all(&project, &options),
        Task::Guest(options) => guest::run(&project, &options).map(|()| ExitCode::SUCCESS),
        Task::Build => install::build(&project).map(|()| ExitCode::SUCCESS),
        Task::Package(options) => package::run(&project, &options).map(|()| ExitCode::SUCCESS),
        Task::Lab(options) => lab::run(&project, &options),
        Task::Test(options) => suite::test(&project, &options),
        Task::E2e(options) => suite::e2e(&project, &options),
        Task::Demo => demo::run(&project),
        Task::Bench { door, part, json } => bench::run(&project, door, part, json.as_deref()),
        Task::Conformance(options) => conformance::run(&project, &options),
        Task::StressInside(inside) => conformance::measure(&inside).map(|()| ExitCode::SUCCESS),
        Task::BenchInside { part, results } => bench::measure(&project, part, &results),
    }
}
