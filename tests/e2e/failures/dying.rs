//! VMMs and shims that are killed.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nacre_tests::{Outcome, TestSandbox, pids};

use super::assert_one_line;

fn kill_new(name: &str, before: &std::collections::BTreeSet<u32>) {
    let new: Vec<u32> = pids(name).difference(before).copied().collect();
    assert!(!new.is_empty(), "no process {name} was started");
    for pid in new {
        Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
    }
}

/// Kills the container's process of this name, while `run` waits, and returns what `run` says.
fn run_and_kill(name: &str) -> Outcome {
    let sandbox = TestSandbox::new();
    let others = pids(name);
    let image = TestSandbox::image();
    let mut command = sandbox.command(&["run", "--rm", &image, "sh", "-c", "echo started; sleep 1000"]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 8];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    kill_new(name, &others);
    let begin = Instant::now();
    let out = Outcome::from(child.wait_with_output().unwrap());
    assert!(begin.elapsed() < Duration::from_secs(20), "it took {:?} to notice", begin.elapsed());
    assert_eq!(first, *b"started\n");
    out
}

#[test]
fn killed_vmm_is_told_at_once() {
    assert_one_line(&run_and_kill("nacre-vmm"), 125, &["VM failed", "VMM died", "signal 9"]);
}

#[test]
fn killed_shim_is_told_at_once() {
    assert_one_line(&run_and_kill("containerd-shim"), 125, &["shim has died"]);
}

#[test]
fn container_whose_vmm_was_killed_is_told_by_wait_and_can_be_removed() {
    let sandbox = TestSandbox::new();
    let others = pids("nacre-vmm");
    let id = sandbox.start(&[], &["sleep", "1000"]);
    kill_new("nacre-vmm", &others);
    assert_eq!(sandbox.nacre(&["wait", &id]).ok().text(), "137");
    sandbox.nacre(&["rm", &id]).ok();
}

#[test]
fn container_whose_shim_was_killed_can_be_removed() {
    let sandbox = TestSandbox::new();
    let others = pids("containerd-shim");
    let id = sandbox.start(&[], &["sleep", "1000"]);
    kill_new("containerd-shim", &others);
    assert_one_line(&sandbox.nacre(&["exec", &id, "true"]), 125, &["shim", "nacre rm -f"]);
    sandbox.nacre(&["rm", "-f", &id]).ok();
}
