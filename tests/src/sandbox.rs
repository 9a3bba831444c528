//! A data directory of nacre's with the test image in it, and commands run against it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::traces::Traces;

/// Environment variable that names the image.
const IMAGE_VARIABLE: &str = "NACRE_TEST_IMAGE";

/// Seconds after which a command is ended: emulated machines under load are slow, and no test waits for ever.
const LIMIT_S: &str = "120";

/// Lines of each log that a failed test prints.
const LOG_LINES: usize = 40;

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit status; 128 + n where a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Runs a command to its end, with an empty standard input.
    ///
    /// # Panics
    /// Where it cannot be run.
    pub fn of(command: &mut Command) -> Self {
        outcome(command, b"")
    }

    /// The outcome of a command that must have succeeded.
    ///
    /// # Panics
    /// Where it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.ended_with(0)
    }

    /// The outcome of a command that must have ended with this status.
    ///
    /// # Panics
    /// Where it ended with another one, with what the command said.
    #[track_caller]
    pub fn ended_with(self, status: i32) -> Self {
        assert_eq!(self.status, status, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Standard output without white space at its ends.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }
}

/// A place to run containers in; what they leave on the machine fails the test.
pub struct TestSandbox {
    root: PathBuf,
    before: Traces,
    // Removed at the end, where this sandbox has a store of its own.
    own: Option<TempDir>,
}

/// The store that most tests share, so that each need not convert the image again.
fn shared_root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory").keep();
        nacre(&dir, &["pull", "-q", &TestSandbox::image()], b"").ok();
        // The first run makes directories that all runs share, and that stay.
        nacre(&dir, &["run", "--rm", &TestSandbox::image(), "true"], b"").ok();
        dir
    })
}

impl Default for TestSandbox {
    fn default() -> Self {
        Self::new()
    }
}

impl TestSandbox {
    /// A sandbox with the test image in its store.
    pub fn new() -> Self {
        Self { root: shared_root().to_owned(), before: Traces::now(), own: None }
    }

    /// A sandbox with nothing in its store.
    ///
    /// # Panics
    /// Where no directory can be made.
    pub fn empty() -> Self {
        let own = tempfile::tempdir().expect("a temporary directory");
        Self { root: own.path().to_owned(), before: Traces::now(), own: Some(own) }
    }

    /// The test image's reference.
    ///
    /// # Panics
    /// Where the environment does not name one: run the tests with `cargo xtask e2e`.
    pub fn image() -> String {
        std::env::var(IMAGE_VARIABLE).expect("NACRE_TEST_IMAGE is not set: run `cargo xtask e2e`")
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Runs `nacre ARGUMENTS`.
    pub fn nacre(&self, arguments: &[&str]) -> Outcome {
        nacre(&self.root, arguments, b"")
    }

    /// Runs `nacre ARGUMENTS` with this on standard input.
    pub fn nacre_with_input(&self, arguments: &[&str], input: &[u8]) -> Outcome {
        nacre(&self.root, arguments, input)
    }

    /// Runs `nacre run --rm OPTIONS IMAGE COMMAND`.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Outcome {
        let image = Self::image();
        let arguments = [&["run", "--rm"], options, &[image.as_str()], command].concat();
        self.nacre(&arguments)
    }

    /// Runs `nacre run --rm IMAGE sh -c SCRIPT`.
    pub fn sh(&self, script: &str) -> Outcome {
        self.run(&[], &["sh", "-c", script])
    }

    /// Starts `nacre run -d OPTIONS IMAGE COMMAND` and returns the container's id.
    pub fn start(&self, options: &[&str], command: &[&str]) -> String {
        let image = Self::image();
        let arguments = [&["run", "-d"], options, &[image.as_str()], command].concat();
        self.nacre(&arguments).ok().text().to_owned()
    }

    /// Runs a shell script in a mount namespace of its own, with the data directory as `$NACRE_ROOT`: what it mounts is
    /// seen by the script's commands alone, and gone with them.
    pub fn script(&self, script: &str) -> Outcome {
        let mut command = Command::new("timeout");
        command.args([
            "-k",
            "5",
            LIMIT_S,
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-euc",
            script,
        ]);
        Outcome::of(command.env("NACRE_ROOT", &self.root))
    }

    /// A Command for `nacre ARGUMENTS`, for tests that do something while it runs.
    pub fn command(&self, arguments: &[&str]) -> Command {
        command(&self.root, arguments)
    }
}

impl Drop for TestSandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_logs(&self.root);
            // What a failed test leaves must not fail the next ones.
            for id in self.nacre(&["ps", "-aq", "--no-trunc"]).stdout.lines() {
                self.nacre(&["rm", "-f", id]);
            }
            return;
        }
        if self.own.is_none() {
            let containers = self.nacre(&["ps", "-aq"]).ok().stdout;
            assert_eq!(containers, "", "containers are left");
        }
        self.before.assert_nothing_new();
    }
}

fn command(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", LIMIT_S, "nacre"]).args(arguments).env("NACRE_ROOT", root);
    command
}

fn nacre(root: &Path, arguments: &[&str], input: &[u8]) -> Outcome {
    outcome(&mut command(root, arguments), input)
}

fn outcome(command: &mut Command, input: &[u8]) -> Outcome {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the test's commands are on PATH");
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    let input = input.to_owned();
    // A thread of its own: a command that prints before it has read all would otherwise wait for us.
    let feeder = std::thread::spawn(move || {
        // The command may end without reading it all.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("the command can be waited for");
    feeder.join().expect("the feeder does not panic");
    Outcome::from(output)
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let status = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        Self {
            status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Prints the end of every log below the data directory: shim, VMM, guest console.
fn print_logs(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && !path.is_symlink() {
            print_logs(&path);
        } else if path.extension().is_some_and(|e| e == "log" || e == "jsonl") {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}", path.display());
            eprintln!("{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"));
        }
    }
}
