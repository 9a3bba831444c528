//! The end-to-end tests: built here, run where KVM works.
//!
//! Each asserts that it leaves nothing behind on its machine, so a machine runs one at a time. Where the machines are
//! emulated ones there are as many as this one has cores, and the tests are dealt out to them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::count::{Count, Counter};
use crate::install::{self, cargo};
use crate::lab::{self, Job, Kind, Place, Stream};
use crate::packages::{self, Need};
use crate::process::{output, step};
use crate::project::Project;

/// All end-to-end tests of one machine together.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Making the image that the tests run.
const IMAGE_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Most emulated machines at once; each has two processors and some GiB of memory.
const MAX_MACHINES: usize = 4;

/// Most that one after the other may end while they run their tests.
const MACHINES_IN_A_ROW: u32 = 3;

/// Most tests of an emulated machine that may fail and run again: the emulator's faults are rare, a defect of nacre's breaks more.
const MAX_AGAIN: usize = 2;

/// Of a panic, the line that tells the place and some of its words.
const PANIC_LINES: usize = 4;

/// How often each of them must pass then. Written in a shell's words.
const TIMES_AGAIN: &str = "1 2 3";

/// Runs those whose name contains `filter`.
pub(super) fn run(project: &Project, filter: Option<&str>, containerd: Option<&Path>) -> Result<Count> {
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
    let binary = step("end-to-end tests: build", || build(project))?;
    let names = names(&binary, filter)?;
    let machines = match place {
        Place::Direct => 1,
        Place::Emulated => thread::available_parallelism().map_or(1, |n| n.get().min(MAX_MACHINES)),
    };
    let image = out.join("image");
    step("end-to-end tests", || {
        on_machines(project, place, &Tests { binary, image, containerd }, &deal(names, machines))
    })
}

/// What a machine needs to run tests.
struct Tests<'a> {
    binary: PathBuf,
    /// Directory of the test image.
    image: PathBuf,
    /// Directory of a containerd that takes the place of the machine's.
    containerd: Option<&'a Path>,
}

impl Tests<'_> {
    /// The command that runs those of these names, one after the other.
    fn command(&self, names: &[String]) -> Vec<String> {
        let mut command =
            vec!["env".to_owned(), format!("NACRE_TEST_IMAGE=oci:{}:python", self.image.display())];
        command.extend(self.containerd.map(|dir| format!("NACRE_TEST_CONTAINERD={}", dir.display())));
        command.extend([
            self.binary.display().to_string(),
            "--test-threads=1".to_owned(),
            "--exact".to_owned(),
        ]);
        command.extend(names.iter().cloned());
        command
    }
}

fn on_machines(project: &Project, place: Place, tests: &Tests<'_>, hands: &[Vec<String>]) -> Result<Count> {
    let mut count = Count::default();
    thread::scope(|scope| {
        let machines: Vec<_> =
            hands.iter().map(|hand| scope.spawn(|| on_machine(project, place, tests, hand))).collect();
        for machine in machines {
            count.add(machine.join().map_err(|_| anyhow::anyhow!("a machine's thread panicked"))??);
        }
        Ok(count)
    })
}

/// Runs tests on a machine of their own. Emulated ones have faults of their own (`docs/testing.md`): where one ends by itself, another one
/// runs those that have not passed yet, and where a test or two fail on one, they run again on another, several times, and are told.
fn on_machine(project: &Project, place: Place, tests: &Tests<'_>, names: &[String]) -> Result<Count> {
    let (mut seen, mut machines) = (Seen::default(), 1);
    let mut count = loop {
        let left: Vec<String> = names.iter().filter(|name| !seen.has(name)).cloned().collect();
        let mut count = Count::of(seen.passed.len(), seen.failed.len());
        // No name at all would stand for every test.
        if left.is_empty() {
            break count;
        }
        match run_on_machine(project, place, tests, &left, &mut seen) {
            Ok(rest) => {
                count.add(rest);
                break count;
            }
            Err(error) if place == Place::Emulated && machines < MACHINES_IN_A_ROW => {
                machines += 1;
                eprintln!("    {error:#}\n    another machine goes on");
            }
            Err(error) => return Err(error),
        }
    };
    if place == Place::Emulated && (1..=MAX_AGAIN).contains(&seen.failed.len()) {
        again(project, place, tests, &seen, &mut count);
    }
    Ok(count)
}

/// Runs tests that failed once more on another machine. Only those that then pass every time count as passed.
fn again(project: &Project, place: Place, tests: &Tests<'_>, seen: &Seen, count: &mut Count) {
    let names = &seen.failed;
    let what = names.join(", ");
    eprintln!("    failed on an emulated processor, and run again on another: {what}");
    let script = format!("for time in {TIMES_AGAIN}; do \"$@\" || exit; done");
    let mut command = vec!["sh".to_owned(), "-ec".to_owned(), script, "again".to_owned()];
    command.extend(tests.command(names));
    let job = Job { kind: Kind::Fresh, ..Job::new(command) }.timeout(LIMIT);
    match lab::execute(project, place, &job, &mut lab::forward) {
        Ok(0) => {
            count.passed_again(names.len());
            println!("    FAILED ONCE, and passed each time when run again: {what}");
        }
        Ok(_) => println!("    FAILED AGAIN: {what}"),
        Err(error) => println!("    FAILED: {what} (not run again: {error:#})"),
    }
    for line in &seen.panics {
        println!("      {line}");
    }
}

/// Names of tests by how they ended.
#[derive(Debug, Default)]
struct Seen {
    passed: Vec<String>,
    failed: Vec<String>,
    /// Where and with which words tests panicked.
    panics: Vec<String>,
    /// Lines of a panic's words that follow.
    words: usize,
}

impl Seen {
    fn has(&self, name: &String) -> bool {
        self.passed.contains(name) || self.failed.contains(name)
    }

    /// Reads libtest's lines `test NAME ... ok` and `test NAME ... FAILED`, and those of panics.
    fn read(&mut self, lines: &str) {
        for line in lines.lines() {
            if line.starts_with("thread '") && line.contains("' panicked at ") {
                self.words = PANIC_LINES;
            }
            if self.words > 0 {
                self.words -= 1;
                self.panics.push(line.to_owned());
            }
            match line.strip_prefix("test ").and_then(|line| line.split_once(" ... ")) {
                Some((name, "ok")) => self.passed.push(name.to_owned()),
                Some((name, "FAILED")) => self.failed.push(name.to_owned()),
                _ => {}
            }
        }
    }
}

/// What is seen is told as it happens: nothing else is known of a machine that ends.
fn run_on_machine(
    project: &Project,
    place: Place,
    tests: &Tests<'_>,
    names: &[String],
    seen: &mut Seen,
) -> Result<Count> {
    // A machine of its own: what others do in the kept one would look as if a test had left it behind.
    let job = Job { kind: Kind::Fresh, ..Job::new(tests.command(names)) }.timeout(LIMIT);
    let (mut counter, mut lines) = (Counter::default(), Lines::default());
    let status = lab::execute(project, place, &job, &mut |stream, bytes| {
        match stream {
            Stream::Out => lines.feed(bytes, &mut |lines| {
                seen.read(&String::from_utf8_lossy(lines));
                lab::forward(stream, lines);
            }),
            Stream::Err => lab::forward(stream, bytes),
        }
        if stream == Stream::Out {
            counter.feed(bytes);
        }
    })?;
    lines.end(&mut |line| lab::forward(Stream::Out, line));
    Ok(counter.result(status == 0))
}

/// Makes whole lines of what comes in pieces, so that machines do not write into each other's.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn feed(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) {
        self.0.extend_from_slice(bytes);
        if let Some(end) = self.0.iter().rposition(|byte| *byte == b'\n') {
            let rest = self.0.split_off(end + 1);
            sink(&std::mem::replace(&mut self.0, rest));
        }
    }

    fn end(mut self, sink: &mut dyn FnMut(&[u8])) {
        if !self.0.is_empty() {
            self.0.push(b'\n');
            sink(&self.0);
        }
    }
}

/// Deals the names out to at most `machines` hands, none of them empty.
fn deal(names: Vec<String>, machines: usize) -> Vec<Vec<String>> {
    let mut hands = vec![Vec::new(); machines.clamp(1, names.len().max(1))];
    let count = hands.len();
    for (number, name) in names.into_iter().enumerate() {
        hands[number % count].push(name);
    }
    hands
}

/// Names of the tests, as the test program lists them.
fn names(binary: &Path, filter: Option<&str>) -> Result<Vec<String>> {
    let mut list = Command::new(binary);
    list.args(["--list", "--format", "terse"]).args(filter);
    let text = output(&mut list)?;
    let names: Vec<String> =
        text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    match (names.is_empty(), filter) {
        (false, _) => Ok(names),
        (true, Some(filter)) => bail!("no end-to-end test has a name with {filter:?}"),
        (true, None) => bail!("the test program lists no tests"),
    }
}

/// Builds the end-to-end tests and tells where cargo put them.
fn build(project: &Project) -> Result<PathBuf> {
    let mut build = cargo(project);
    build.args(["test", "-p", "nacre-tests", "--test", "e2e", "--no-run", "--locked"]);
    build.arg("--message-format=json");
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

    #[test]
    fn how_tests_ended_is_read_from_whole_lines() {
        let mut seen = Seen::default();
        seen.read("running 4 tests\ntest run::a ... ok\ntest run::b ... FAILED\ntest run::c ... ok\ntest result: FAILED. 2\n");
        seen.read("thread 'run::b' panicked at tests/b.rs:1:2:\nassertion failed: b\n");
        seen.read("one\ntwo\nthree\n");
        assert_eq!(
            seen.panics.join("|"),
            "thread 'run::b' panicked at tests/b.rs:1:2:|assertion failed: b|one|two"
        );
        assert_eq!(seen.passed, ["run::a", "run::c"]);
        assert_eq!(seen.failed, ["run::b"]);
        assert!(seen.has(&"run::b".to_owned()) && !seen.has(&"run::d".to_owned()));
    }

    #[test]
    fn every_name_is_dealt_once_and_no_hand_is_empty() {
        for (count, machines) in [(1, 4), (7, 2), (8, 3), (3, 1)] {
            let names: Vec<String> = (0..count).map(|number| format!("test{number}")).collect();
            let hands = deal(names.clone(), machines);
            assert!(hands.len() <= machines && hands.iter().all(|hand| !hand.is_empty()));
            let mut dealt = hands.concat();
            dealt.sort();
            assert_eq!(dealt, names);
        }
    }

    #[test]
    fn lines_come_out_whole() {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for piece in ["test a", " ... ", "ok\ntest b ... ok\nte", "st c"] {
            lines.feed(piece.as_bytes(), &mut |line| out.push(String::from_utf8_lossy(line).into_owned()));
        }
        lines.end(&mut |line| out.push(String::from_utf8_lossy(line).into_owned()));
        assert_eq!(out, ["test a ... ok\ntest b ... ok\n", "test c\n"]);
    }
}
