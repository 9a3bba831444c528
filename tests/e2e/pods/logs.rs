//! The log file of a container, in the CRI's form: time, stream, tag (`F`: whole line, `P`: more follows), text.

use std::fs;

use nacre_protocol::cri::Empty;
use nacre_tests::Stay;
use nacre_tests::cri::{Wish, named, wait_for};

use super::NODE;

/// containerd's `max_container_log_line_size`.
const LONGEST: usize = 16 << 10;

#[test]
fn lines_of_both_streams_are_logged_with_time_stream_and_tag() {
    lines(&NODE.share());
}

pub(crate) fn lines(stay: &Stay<'_>) {
    let (_, log) = stay.pod().run_to_end("both", Wish::sh("echo out; echo err >&2; echo; echo 'a b  c'"));
    let mut lines: Vec<(&str, &str)> = log.lines().map(|line| line.split_once(' ').unwrap()).collect();
    for (time, rest) in &lines {
        assert!(time.starts_with("20") && time.contains('T') && time.contains('.'), "{time} {rest}");
    }
    // Two streams have no order between them.
    lines.sort_by_key(|(_, rest)| rest.starts_with("stdout"));
    let rest: Vec<&str> = lines.into_iter().map(|(_, rest)| rest).collect();
    assert_eq!(rest, ["stderr F err", "stdout F out", "stdout F ", "stdout F a b  c"]);
}

#[test]
fn long_line_is_logged_in_parts_of_which_the_last_is_marked() {
    let script = format!("head -c {} /dev/zero | tr '\\0' x; echo; echo end", 2 * LONGEST + 10);
    let (_, log) = NODE.share().pod().run_to_end("long", Wish::sh(&script));
    let parts: Vec<(&str, usize)> = log
        .lines()
        .map(|line| line.splitn(4, ' ').collect::<Vec<_>>())
        .map(|words| (words[2], words[3].len()))
        .collect();
    assert_eq!(parts, [("P", LONGEST), ("P", LONGEST), ("F", 10), ("F", 3)]);
}

#[test]
fn all_that_a_container_says_before_it_ends_is_in_its_log() {
    let stay = NODE.share();
    let script = "for i in $(seq 2000); do echo line $i; done; printf last";
    let (_, log) = stay.pod().run_to_end("much", Wish::sh(script));
    assert_eq!(log.lines().count(), 2001);
    assert!(log.contains("stdout F line 1999\n") && log.trim_end().ends_with(" last"), "{log}");
}

#[test]
fn log_is_opened_again_after_it_was_moved_away() {
    let stay = NODE.share();
    let pod = stay.pod();
    let volume = stay.dir("log-signal");
    let script = "echo before; until [ -e /s/go ]; do sleep 0.1; done; echo after; exec sleep 100000";
    let id = pod.start("moved", Wish::sh(script).mount(&volume, "/s"));
    let (log, old) = (stay.path("logs/shared/moved-0.log"), stay.path("logs/shared/moved-0.log.1"));
    wait_for("the first line", || pod.log("moved", 0).contains("before"));
    fs::rename(&log, &old).unwrap();
    let _: Empty = stay.cri().must("ReopenContainerLog", &named(&id));
    fs::write(volume.join("go"), "").unwrap();
    wait_for("the second line", || pod.log("moved", 0).contains("after"));
    assert!(!pod.log("moved", 0).contains("before"));
    assert!(fs::read_to_string(&old).unwrap().ends_with("stdout F before\n"));
    pod.remove(&id);
}

#[test]
fn output_of_a_terminal_is_one_stream() {
    let wish = Wish::sh("tty; echo err >&2").with(|config| config.tty = true);
    let (ended, log) = NODE.share().pod().run_to_end("terminal", wish);
    assert_eq!(ended.exit_code, 0, "{log}");
    assert!(log.contains("stdout F /dev/pts/0") && log.contains("stdout F err"), "{log}");
}
