//! The one door for developers: `cargo xtask COMMAND`.
//!
//! | module | command |
//! |---|---|
//! | [`check`] | `check`: what must hold before a commit |
//! | [`guest`] | `guest`: kernel and initramfs of the guest |
//! | [`install`] | `build`: the binaries, laid out as an installation |
//! | [`lab`] | `lab`: a machine with a working /dev/kvm, here or emulated |
//!
//! [`project`] knows the places, [`packages`] what the host must have, [`process`] runs programs.

mod check;
mod guest;
mod install;
mod lab;
mod packages;
mod probe;
mod process;
mod project;

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
    Guest,
    /// Build the release binaries and lay out an installation in target/nacre
    Build,
    /// Run a command as root where /dev/kvm works, with nacre on its PATH
    Lab(lab::Options),
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
        Task::Guest => guest::build(&project).map(|_| ExitCode::SUCCESS),
        Task::Build => install::build(&project).map(|()| ExitCode::SUCCESS),
        Task::Lab(options) => lab::run(&project, &options),
    }
}
