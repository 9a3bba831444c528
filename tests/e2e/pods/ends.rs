//! How a container ends: exit codes, signals, grace, limits of memory.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nacre_tests::Stay;
use nacre_tests::cri::{EXITED, Pod, Wish, wait_for};
use nacre_tests::images::CONFIGURED;

use super::NODE;

/// Ends by itself on SIGTERM with status 5.
const POLITE: &str = "trap 'echo bye; exit 5' TERM; echo begun; while true; do sleep 0.1; done";

/// Does not.
const DEAF: &str = "trap '' TERM; echo begun; while true; do sleep 0.1; done";

#[test]
fn exit_codes_and_their_reasons_are_told() {
    exit_codes(&NODE.share());
}

pub(crate) fn exit_codes(stay: &Stay<'_>) {
    let pod = stay.pod();
    for (code, reason) in [(0, "Completed"), (1, "Error"), (42, "Error"), (255, "Error")] {
        let (ended, _) = pod.run_to_end("code", Wish::sh(&format!("exit {code}")).attempt(code));
        assert_eq!((ended.exit_code.unsigned_abs(), ended.reason.as_str()), (code, reason));
    }
}

#[test]
fn start_of_a_command_that_is_not_there_fails_and_names_it() {
    missing_command(&NODE.share());
}

pub(crate) fn missing_command(stay: &Stay<'_>) {
    let pod = stay.pod();
    let wish = Wish::sh("").command(&["no-such-program"]);
    let (id, refusal) = pod.start_refused("missing", wish);
    assert!(refusal.message.contains("no-such-program"), "{refusal:?}");
    let status = pod.status(&id);
    assert_eq!((status.state, status.reason.as_str()), (EXITED, "StartError"));
    assert!(status.exit_code != 0 && status.message.contains("no-such-program"), "{status:?}");
    pod.remove(&id);
}

#[test]
fn start_of_a_file_that_is_no_program_fails_and_names_it() {
    let stay = NODE.share();
    let pod = stay.pod();
    let (id, refusal) = pod.start_refused("data", Wish::sh("").command(&["/etc/passwd"]));
    assert!(refusal.message.contains("/etc/passwd"), "{refusal:?}");
    assert!(refusal.message.to_lowercase().contains("permission denied"), "{refusal:?}");
    pod.remove(&id);
}

#[test]
fn container_ended_by_a_signal_has_128_and_its_number() {
    let stay = NODE.enter();
    let pod = stay.run("signals");
    // With the pod's processes it is not PID 1, which the kernel spares from signals that it does not handle.
    for (signal, code) in [("KILL", 137), ("SEGV", 139), ("TERM", 143)] {
        let wish = Wish::sh(&format!("kill -{signal} $$")).share_processes().attempt(code);
        let (ended, _) = pod.run_to_end("signal", wish);
        assert_eq!(ended.exit_code.unsigned_abs(), code, "SIG{signal}: {ended:?}");
    }
    pod.end();
}

#[test]
fn container_that_takes_too_much_memory_is_oom_killed_and_the_pod_lives_on() {
    oom(&NODE.share());
}

pub(crate) fn oom(stay: &Stay<'_>) {
    let pod = stay.pod();
    let beside = pod.start("beside", Wish::idle());
    let hog = "exec python3 -c 'x = bytearray(200 << 20); print(len(x))'";
    let (ended, _) = pod.run_to_end("hog", Wish::sh(hog).memory(48 << 20));
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    pod.sh(&beside, "true").ok();
    assert!(pod.is_ready());
    pod.remove(&beside);
}

#[test]
fn container_that_ends_on_sigterm_has_its_own_status() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("polite", Wish::sh(POLITE));
    wait_for("the trap", || pod.log("polite", 0).contains("begun"));
    let ended = pod.stop_within(&id, 120);
    assert_eq!((ended.exit_code, ended.reason.as_str()), (5, "Error"));
    pod.wait_for_log_end("polite", 0, "stdout F bye\n");
    pod.remove(&id);
}

#[test]
fn container_that_ignores_sigterm_is_killed_after_its_grace() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("deaf", Wish::sh(DEAF));
    wait_for("the trap", || pod.log("deaf", 0).contains("begun"));
    let begun = Instant::now();
    assert_eq!(pod.stop_within(&id, 3).exit_code, 137);
    assert!(begun.elapsed() >= Duration::from_secs(3), "after {:?}", begun.elapsed());
    pod.remove(&id);
}

#[test]
fn stop_without_grace_does_not_ask_first() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("at-once", Wish::sh(POLITE));
    wait_for("the trap", || pod.log("at-once", 0).contains("begun"));
    assert_eq!(pod.stop_within(&id, 0).exit_code, 137);
    assert!(!pod.log("at-once", 0).contains("bye"));
    pod.remove(&id);
}

#[test]
fn container_is_stopped_by_the_signal_of_its_image() {
    let stay = NODE.share();
    let pod = stay.pod();
    let id = pod.start("signalled", Wish::of(CONFIGURED));
    wait_for("the trap", || pod.log("signalled", 0).contains("begun"));
    assert_eq!(pod.stop_within(&id, 120).exit_code, 3);
    pod.wait_for_log_end("signalled", 0, "stdout F told\n");
    pod.remove(&id);
}

#[test]
fn children_of_a_container_end_with_it() {
    let stay = NODE.enter();
    let pod = stay.run("children");
    let watch = pod.start("watch", Wish::idle().share_processes());
    let (ended, _) = pod.run_to_end("parent", Wish::sh("sleep 5151 & sleep 0.1; exit 4").share_processes());
    assert_eq!(ended.exit_code, 4);
    assert!(!pod.sh(&watch, "ps").ok().stdout.contains("sleep 5151"));
    pod.end();
}

/// A pod whose VM has ended with everything in it; the next one of its name starts.
#[track_caller]
fn is_told_and_replaced(stay: &Stay<'_>, pod: Pod<'_>, name: &str, containers: &[&str]) {
    for container in containers {
        assert_eq!(pod.wait(container).exit_code, 137);
    }
    pod.wait_until_not_ready();
    pod.end();
    let pod = stay.run(name);
    let (ended, _) = pod.run_to_end("next", Wish::sh("exit 6"));
    assert_eq!(ended.exit_code, 6);
    pod.end();
}

#[test]
fn panic_of_the_guests_kernel_ends_the_pod_and_the_next_of_its_name_starts() {
    let stay = NODE.enter();
    let mut config = stay.config("panics");
    config.linux.mut_or_insert_default().security_context.mut_or_insert_default().privileged = true;
    let pod = stay.run_config(config);
    let beside = pod.start("beside", Wish::idle());
    // What a defect of the kernel would do.
    let script = "echo 2 > /proc/sys/vm/panic_on_oom; exec python3 -c 'x = bytearray(200 << 20)'";
    let wish = Wish::sh(script).memory(32 << 20).security(|security| security.privileged = true);
    let panics = pod.start("panics", wish);
    is_told_and_replaced(&stay, pod, "panics", &[&beside, &panics]);
}

#[test]
fn host_that_is_out_of_memory_takes_the_vm_and_the_next_pod_of_its_name_starts() {
    let stay = NODE.enter();
    let pod = stay.run("squeezed");
    let beside = pod.start("beside", Wish::idle());
    // The pod's own cgroup stands for the node: its memory is what the kernel's OOM killer looks at.
    let limit = Path::new("/sys/fs/cgroup/kubepods/squeezed/memory.max");
    fs::write(limit, (160_u64 << 20).to_string()).unwrap();
    let script = "exec python3 -c 'x = b\"x\" * (300 << 20); print(len(x))'";
    let hog = pod.start("hog", Wish::sh(script));
    is_told_and_replaced(&stay, pod, "squeezed", &[&beside, &hog]);
}
