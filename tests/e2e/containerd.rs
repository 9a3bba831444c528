//! The shim under a real containerd: an ordinary image, its overlayfs snapshot, and `ctr`.

use std::fs;
use std::path::Path;

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
