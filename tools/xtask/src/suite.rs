//! `test` and `e2e`: every test there is, and one line that counts them.
//!
//! Unit, property and component tests run here; the end-to-end tests (crate `tests`) run against the installed
//! binaries, where KVM works: on this machine, or in the lab. None is skipped: a test that is ignored counts as
//! failed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::install::{self, cargo};
use crate::lab::{self, Job, Kind, Place, Stream};
use crate::packages::{self, Need};
use crate::process::step;
use crate::project::Project;

/// All end-to-end tests together.
const E2E_LIMIT: Duration = Duration::from_secs(40 * 60);

/// Making the image that the tests run.
const IMAGE_LIMIT: Duration = Duration::from_secs(5 * 60);

/// `test [FILTER]`, `e2e [FILTER]`
#[derive(Args)]
pub(crate) struct Options {
    /// Only end-to-end tests whose name contains this
    filter: Option<String>,
}

/// Tests that ended one way or the other.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u32,
    failed: u32,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// The last line, and the status that says the same.
    fn finish(self) -> ExitCode {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 && self.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Reads libtest's summary lines as they pass by.
#[derive(Debug, Default)]
struct Counter {
    line: Vec<u8>,
    count: Count,
    summaries: u32,
}

impl Counter {
    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            if let Some(count) = summary(&String::from_utf8_lossy(&self.line)) {
                self.summaries += 1;
                self.count.add(count);
            }
            self.line.clear();
        }
    }

    /// The count of a run that ended with `success`: one that failed without a failed test (it crashed, or did
    /// not compile), or that never came to a summary, counts as one failure.
    fn result(&self, success: bool) -> Count {
        let mut count = self.count;
        if (!success && count.failed == 0) || self.summaries == 0 {
            count.failed += 1;
        }
        count
    }
}

/// `test result: ok. 17 passed; 0 failed; 1 ignored; 0 measured; ...`, where ignored counts as failed.
fn summary(line: &str) -> Option<Count> {
    let (_, numbers) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        let field = numbers.split(';').find(|field| field.trim().ends_with(word))?;
        field.trim().split(' ').next()?.parse::<u32>().ok()
    };
    Some(Count { passed: number("passed")?, failed: number("failed")? + number("ignored")? })
}

/// Runs all tests.
pub(crate) fn test(project: &Project, options: &Options) -> Result<ExitCode> {
    packages::ensure(&[Need::Compile])?;
    let mut count = step("unit, property and component tests", || here(project))?;
    count.add(end_to_end(project, options)?);
    Ok(count.finish())
}

/// Runs the end-to-end tests alone.
pub(crate) fn e2e(project: &Project, options: &Options) -> Result<ExitCode> {
    Ok(end_to_end(project, options)?.finish())
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

fn end_to_end(project: &Project, options: &Options) -> Result<Count> {
    install::build(project)?;
    let place = lab::place();
    if place == Place::Direct {
        packages::ensure(&[Need::Direct])?;
    }
    let out = project.target.join("demo");
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let script = project.root.join("tools/demo/image.sh");
    let image = Job::new([script.display().to_string(), out.display().to_string()]).timeout(IMAGE_LIMIT);
    match step("test image", || lab::execute(project, place, &image, &mut lab::forward))? {
        0 => {}
        status => bail!("making the test image ended with status {status}"),
    }
    let binary = step("end-to-end tests: build", || test_binary(project))?;
    let mut command = vec![
        "env".to_owned(),
        format!("NACRE_TEST_IMAGE=oci:{}:python", out.join("image").display()),
        binary.display().to_string(),
        // One at a time: each asserts that it leaves nothing behind on the machine.
        "--test-threads=1".to_owned(),
    ];
    command.extend(options.filter.clone());
    // A machine of its own: what others do in the kept one would look as if a test had left it behind.
    let job = Job { kind: Kind::Fresh, ..Job::new(command) }.timeout(E2E_LIMIT);
    let mut counter = Counter::default();
    let status = step("end-to-end tests", || {
        lab::execute(project, place, &job, &mut |stream, bytes| {
            lab::forward(stream, bytes);
            if stream == Stream::Out {
                counter.feed(bytes);
            }
        })
    })?;
    Ok(counter.result(status == 0))
}

/// Builds the end-to-end tests and tells where cargo put them.
fn test_binary(project: &Project) -> Result<PathBuf> {
    let mut build = cargo(project);
    build.args([
        "test",
        "-p",
        "nacre-tests",
        "--test",
        "e2e",
        "--no-run",
        "--locked",
        "--message-format=json",
    ]);
    let out = build.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !out.status.success() {
        bail!("the end-to-end tests do not compile");
    }
    let messages = String::from_utf8_lossy(&out.stdout);
    let executable = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "e2e")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.context("cargo built no end-to-end tests")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str =
        "test result: ok. 17 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s\n";

    #[test]
    fn summaries_add_up_over_split_chunks() {
        let mut counter = Counter::default();
        let text = format!("noise\n{OK}test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured\n");
        for chunk in text.as_bytes().chunks(7) {
            counter.feed(chunk);
        }
        assert_eq!(counter.result(false), Count { passed: 19, failed: 1 });
    }

    #[test]
    fn ignored_test_counts_as_failed() {
        let mut counter = Counter::default();
        counter.feed(b"test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured\n");
        assert_eq!(counter.result(true), Count { passed: 1, failed: 2 });
    }

    #[test]
    fn run_that_crashed_counts_as_a_failure() {
        let mut counter = Counter::default();
        counter.feed(OK.as_bytes());
        assert_eq!(counter.result(false), Count { passed: 17, failed: 1 });
        assert_eq!(Counter::default().result(true), Count { passed: 0, failed: 1 });
    }
}
