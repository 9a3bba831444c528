//! `run -d`, and the commands for what it starts.

use nacre_tests::TestSandbox;

#[test]
fn exec_runs_beside_the_program() {
    let sandbox = TestSandbox::new();
    let id = sandbox.start(&["--name", "web"], &["sleep", "1000"]);
    sandbox.nacre(&["exec", "web", "sh", "-c", "echo in; exit 3"]).ended_with(3);
    assert!(sandbox.nacre(&["exec", "-i", &id, "cat", "/proc/1/cmdline"]).ok().stdout.starts_with("sleep"));
    sandbox.nacre(&["rm", "-f", "web"]).ok();
}

#[test]
fn ps_shows_what_runs_and_with_a_what_has_run() {
    let sandbox = TestSandbox::new();
    sandbox.start(&["--name", "one"], &["sleep", "1000"]);
    assert!(sandbox.nacre(&["ps"]).ok().stdout.contains("one"));
    sandbox.nacre(&["kill", "one"]).ok();
    sandbox.nacre(&["wait", "one"]).ok();
    assert!(!sandbox.nacre(&["ps"]).ok().stdout.contains("one"));
    assert!(sandbox.nacre(&["ps", "-a"]).ok().stdout.contains("one"));
    sandbox.nacre(&["rm", "one"]).ok();
}

#[test]
fn logs_have_both_streams() {
    let sandbox = TestSandbox::new();
    let id = sandbox.start(&[], &["sh", "-c", "echo out; echo err >&2"]);
    sandbox.nacre(&["wait", &id]).ok();
    let logs = sandbox.nacre(&["logs", &id]).ok();
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("out\n", "err\n"));
    sandbox.nacre(&["rm", &id]).ok();
}

#[test]
fn wait_prints_the_exit_status() {
    let sandbox = TestSandbox::new();
    let id = sandbox.start(&[], &["sh", "-c", "exit 7"]);
    assert_eq!(sandbox.nacre(&["wait", &id]).ok().text(), "7");
    sandbox.nacre(&["rm", &id]).ok();
}

#[test]
fn stop_sends_the_stop_signal_first() {
    let sandbox = TestSandbox::new();
    let id =
        sandbox.start(&[], &["sh", "-c", "trap 'echo bye; exit 5' TERM; while true; do sleep 0.1; done"]);
    sandbox.nacre(&["exec", &id, "true"]).ok();
    sandbox.nacre(&["stop", "-t", "60", &id]).ok();
    assert_eq!(sandbox.nacre(&["wait", &id]).ok().text(), "5");
    assert_eq!(sandbox.nacre(&["logs", &id]).ok().stdout, "bye\n");
    sandbox.nacre(&["rm", &id]).ok();
}

#[test]
fn stop_kills_what_does_not_listen() {
    let sandbox = TestSandbox::new();
    // PID 1 without a handler ignores SIGTERM.
    let id = sandbox.start(&[], &["sleep", "1000"]);
    sandbox.nacre(&["stop", "-t", "1", &id]).ok();
    assert_eq!(sandbox.nacre(&["wait", &id]).ok().text(), "137");
    sandbox.nacre(&["rm", &id]).ok();
}

#[test]
fn rm_removes_by_itself_at_the_end() {
    let sandbox = TestSandbox::new();
    let id = sandbox.start(&["--rm"], &["sleep", "1000"]);
    sandbox.nacre(&["kill", &id]).ok();
    sandbox.nacre(&["wait", &id]);
}
