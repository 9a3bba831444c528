//! One verb a file.

mod check;
mod exec;
mod images;
mod inspect;
mod kill;
mod logs;
mod prune;
mod ps;
mod pull;
mod rm;
mod rmi;
mod run;
mod stop;
mod wait;

use std::future::Future;
use std::path::Path;

use anyhow::{Context, Result};

use crate::args::{Args, Command, SystemCommand};

/// The exit status that an error stands for, put on it as context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit(pub(crate) u8);

impl std::fmt::Display for Exit {
    /// Nothing: the causes tell what happened.
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}

impl std::error::Error for Exit {}

/// Carries the command out and tells the exit status.
pub(crate) fn run(args: Args) -> Result<u8> {
    let root: &Path = &args.root;
    match args.command {
        Command::Run(run) => run::run(root, &run),
        Command::Exec(exec) => exec::run(root, &exec),
        Command::Ps(ps) => done(ps::run(root, &ps)),
        Command::Logs(logs) => done(logs::run(root, &logs)),
        Command::Stop(stop) => each(&stop.containers, |name| stop::run(root, name, &stop)),
        Command::Kill(kill) => each(&kill.containers, |name| kill::run(root, name, &kill.signal)),
        Command::Rm(rm) => each(&rm.containers, |name| rm::run(root, name, rm.force)),
        Command::Wait(wait) => each(&wait.names, |name| wait::run(root, name)),
        Command::Pull(pull) => done(pull::run(root, &pull)),
        Command::Images(images) => done(images::run(root, &images)),
        Command::Rmi(rmi) => each(&rmi.images, |name| rmi::run(root, name, rmi.force)),
        Command::Inspect(inspect) => done(inspect::run(root, &inspect.names)),
        Command::System(SystemCommand::Prune(prune)) => done(prune::run(root, &prune)),
        Command::Check(check) => check::run(root, &check),
    }
}

fn done(result: Result<()>) -> Result<u8> {
    result.map(|()| 0).context(Exit(1))
}

/// Runs a command for each name; one that fails does not keep the others from being tried.
fn each(names: &[String], mut command: impl FnMut(&str) -> Result<String>) -> Result<u8> {
    let mut status = 0;
    for name in names {
        match command(name) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                eprintln!("nacre: {}", crate::output::error_line(&error));
                status = 1;
            }
        }
    }
    Ok(status)
}

/// Runs a conversation with a shim on this thread.
fn block_on<T>(conversation: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the event loop")?;
    let result = runtime.block_on(conversation);
    // A thread may sit in a read of stdin for ever: it ends with the process.
    runtime.shutdown_background();
    result
}
