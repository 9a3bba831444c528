//! The shim under a real containerd: an ordinary image, its overlayfs snapshot, and `ctr`.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nacre_tests::{Containerd, TestSandbox};

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
