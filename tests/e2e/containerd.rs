//! The shim under a real containerd: an ordinary image, its overlayfs snapshot, and `ctr`.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nacre_tests::{Containerd, TestSandbox};
use serde_json::Value;

#[test]
fn containerd_runs_an_overlayfs_snapshot_behind_a_kernel_of_its_own() {
    // Made first, so that it looks last: at what is left when containerd is gone as well.
    let _census = TestSandbox::new();
    let containerd = Containerd::start();
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let out = containerd.run(&[], "kernel", &["uname", "-r"]).ok();
    assert!(out.text().ends_with("-guest") && out.text() != host.trim(), "{out:?}");

    let written = containerd.run(&[], "written", &["sh", "-c", "echo one > /new && cat /new && exit 7"]);
    assert_eq!((written.status, written.text()), (7, "one"), "{written:?}");

    let tasks = containerd.ctr(&["task", "ls", "-q"]).ok();
    assert_eq!(tasks.text(), "", "no task is left");
    assert!(!Path::new("/run/nacre/default").exists(), "no sandbox is left");
}

#[test]
fn output_is_whole_though_its_reader_is_slow() {
    let _census = TestSandbox::new();
    let containerd = Containerd::start();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = containerd.run_command(&[], "slow", &["sh", "-c", "head -c 4000000 /dev/zero"]);
    let mut ctr = command.stdin(Stdio::null()).stdout(writer).spawn().unwrap();
    // It holds the pipe open.
    drop(command);
    // A page at a time: all that lies between is full when the program ends.
    let (mut bytes, mut page) = (0, [0; 4096]);
    loop {
        match reader.read(&mut page).unwrap() {
            0 => break,
            count => bytes += count,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!((bytes, ctr.wait().unwrap().code()), (4_000_000, Some(0)));
}

/// `ctr run --detach` with further options.
fn start(containerd: &Containerd, runtime: &str, options: &[&str], id: &str, command: &[&str]) {
    let run = ["run", "--detach", "--runtime", runtime];
    containerd.ctr(&[&run, options, &[nacre_tests::images::IMAGE, id], command].concat()).ok();
}

/// Forgets a container whose process is about to end.
fn remove(containerd: &Containerd, id: &str) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while containerd.ctr(&["task", "delete", id]).status == 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
    }
    containerd.ctr(&["container", "delete", id]).ok();
}

/// The events of a task's life: the topic of each, and the names of what it tells.
fn life(containerd: &Containerd, runtime: &str) -> Vec<(String, Vec<String>)> {
    let mut events = containerd.ctr_command(&["events"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let mut next = || {
        let line = lines.next().expect("another event").unwrap();
        let (before, told) = line.split_once(" {").unwrap_or((&line, "}"));
        let topic = before.rsplit(' ').next().unwrap().to_owned();
        let told: Value = serde_json::from_str(&format!("{{{told}")).unwrap();
        (topic, told.as_object().unwrap().keys().cloned().collect::<Vec<_>>())
    };
    // It tells nothing of what was before it listened.
    let mut probe = 0;
    let heard = std::thread::scope(|scope| {
        let first = scope.spawn(&mut next);
        while !first.is_finished() {
            probe += 1;
            let label = format!("probe={probe}");
            let _ = containerd.ctr(&["image", "label", nacre_tests::images::IMAGE, &label]);
            std::thread::sleep(Duration::from_millis(200));
        }
        first.join().unwrap()
    });
    assert_eq!(heard.0, "/images/update");

    start(containerd, runtime, &[], "life", &["sleep", "100000"]);
    let exec = ["task", "exec", "--exec-id", "probe", "life", "sh", "-c", "exit 3"];
    assert_eq!(containerd.ctr(&exec).status, 3);
    containerd.ctr(&["task", "pause", "life"]).ok();
    containerd.ctr(&["task", "resume", "life"]).ok();
    containerd.ctr(&["task", "kill", "--signal", "KILL", "life"]).ok();
    remove(containerd, "life");
    let mut found = Vec::new();
    while found.last().is_none_or(|(topic, _)| topic != "/tasks/delete") {
        let event = next();
        if event.0.starts_with("/tasks/") {
            found.push(event);
        }
    }
    let _ = events.kill();
    let _ = events.wait();
    found
}

#[test]
fn events_of_a_tasks_life_have_the_order_and_the_fields_of_runcs() {
    let _census = TestSandbox::new();
    let containerd = Containerd::start();
    let (ours, runcs) =
        (life(&containerd, "io.containerd.nacre.v2"), life(&containerd, "io.containerd.runc.v2"));
    // runc leaves its parent there.
    let _ = fs::remove_dir("/sys/fs/cgroup/default");
    let topics: Vec<&str> = ours.iter().map(|(topic, _)| topic.as_str()).collect();
    assert_eq!(
        topics,
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/paused",
            "/tasks/resumed",
            "/tasks/exit",
            "/tasks/delete"
        ]
    );
    assert_eq!(ours, runcs);
}

#[test]
fn processes_are_listed_and_a_checkpoint_is_refused() {
    let _census = TestSandbox::new();
    let containerd = Containerd::start();
    start(&containerd, "io.containerd.nacre.v2", &[], "listed", &["sleep", "100000"]);
    let pid = |list: &[&str]| {
        let out = containerd.ctr(list).ok();
        let number = |line: &str| line.split_whitespace().find_map(|word| word.parse::<u32>().ok());
        out.stdout.lines().find_map(number).expect("a process")
    };
    assert_eq!(pid(&["task", "ps", "listed"]), pid(&["task", "ls"]));
    let refused = containerd.ctr(&["task", "checkpoint", "listed"]);
    assert_eq!((refused.status, refused.stderr.as_str()), (1, "ctr: checkpoints are not supported\n"));
    containerd.ctr(&["task", "kill", "--signal", "KILL", "listed"]).ok();
    remove(&containerd, "listed");
}

#[test]
fn output_goes_to_a_file_or_to_a_logging_program_as_the_caller_says() {
    let _census = TestSandbox::new();
    let containerd = Containerd::start();
    let wait_for = |path: &Path, expected: &str| {
        let deadline = Instant::now() + Duration::from_secs(120);
        while fs::read_to_string(path).unwrap_or_default() != expected {
            assert!(Instant::now() < deadline, "{}: {:?}", path.display(), fs::read_to_string(path));
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let runtime = "io.containerd.nacre.v2";
    let log = containerd.path("logs/of/its/own/log");
    let uri = format!("file://{}", log.display());
    start(&containerd, runtime, &["--log-uri", &uri], "filed", &["echo", "to a file"]);
    wait_for(&log, "to a file\n");
    remove(&containerd, "filed");

    let program = containerd.path("logger");
    let script = "#!/bin/sh\nexec 5>&-\ncat <&3 > \"$0.out\" &\ncat <&4 > \"$0.err\" &\n\
                  echo \"$CONTAINER_NAMESPACE/$CONTAINER_ID $*\" > \"$0.env\"\nwait\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}?key=value", program.display());
    let command = "echo to stdout; echo to stderr >&2";
    start(&containerd, runtime, &["--log-uri", &uri], "logged", &["sh", "-c", command]);
    for (suffix, expected) in
        [("out", "to stdout\n"), ("err", "to stderr\n"), ("env", "default/logged key value\n")]
    {
        wait_for(&program.with_extension(suffix), expected);
    }
    remove(&containerd, "logged");
}
