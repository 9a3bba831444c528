//! `test` and `e2e`: every test there is, and one line that counts them.
//!
//! Unit, property and component tests run here; the end-to-end tests (crate `tests`) run against the installed
//! binaries, where KVM works: on this machine, or in the lab. None is skipped: a test that is ignored counts as
//! failed.
//!
//! ```text
//! count.rs       counts what libtest prints
//! end_to_end.rs  deals the end-to-end tests out to machines
//! ```

mod count;
mod end_to_end;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::install::cargo;
use crate::lab::{self, Stream};
use crate::packages::{self, Need};
use crate::process::step;
use crate::project::Project;
use count::{Count, Counter};

/// `test [FILTER]`, `e2e [FILTER]`
#[derive(Args)]
pub(crate) struct Options {
    /// Only end-to-end tests whose name contains this
    filter: Option<String>,
}

/// Runs all tests.
pub(crate) fn test(project: &Project, options: &Options) -> Result<ExitCode> {
    packages::ensure(&[Need::Compile, Need::Test])?;
    let mut count = step("unit, property and component tests", || here(project))?;
    count.add(end_to_end::run(project, options.filter.as_deref(), None)?);
    Ok(count.finish())
}

/// Runs the end-to-end tests alone.
pub(crate) fn e2e(project: &Project, options: &Options) -> Result<ExitCode> {
    Ok(end_to_end::run(project, options.filter.as_deref(), None)?.finish())
}

/// Runs those of the end-to-end tests whose name contains `filter` with the `containerd` and `ctr` of a directory.
pub(crate) fn with_containerd(project: &Project, filter: &str, dir: &Path) -> Result<ExitCode> {
    Ok(end_to_end::run(project, Some(filter), Some(dir))?.finish())
}

fn here(project: &Project) -> Result<Count> {
    let mut test = cargo(project);
    test.args(["test", "--workspace", "--no-fail-fast", "--locked"]);
    let mut child = test.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let mut counter = Counter::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let mut line = line?;
            line.push(b'\n');
            lab::forward(Stream::Out, &line);
            counter.feed(&line);
        }
    }
    Ok(counter.result(child.wait()?.success()))
}
