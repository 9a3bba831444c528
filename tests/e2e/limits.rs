//! Limits, as a program in the container sees and feels them.

use nacre_tests::TestSandbox;

#[test]
fn memory_limit_is_seen() {
    let out = TestSandbox::new().run(&["-m", "96m"], &["cat", "/sys/fs/cgroup/memory.max"]).ok();
    assert_eq!(out.text(), (96 << 20).to_string());
}

#[test]
fn cpu_limit_is_seen() {
    let out = TestSandbox::new().run(&["--cpus", "0.5"], &["cat", "/sys/fs/cgroup/cpu.max"]).ok();
    assert_eq!(out.text(), "50000 100000");
}

#[test]
fn two_cpus_are_two_processors() {
    assert_eq!(TestSandbox::new().run(&["--cpus", "2"], &["nproc"]).ok().text(), "2");
}

#[test]
fn process_limit_stops_a_fork_bomb() {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 5 & done; echo started";
    let out = TestSandbox::new().run(&["--pids-limit", "8"], &["sh", "-c", script]);
    assert!(out.stderr.contains("can't fork"), "{out:?}");
}

#[test]
fn memory_hog_is_killed_and_its_neighbour_is_not() {
    let sandbox = TestSandbox::new();
    let neighbour = sandbox.start(&[], &["sleep", "1000"]);
    let hog = ["python3", "-c", "x = bytearray(200 << 20)"];
    sandbox.run(&["-m", "64m"], &hog).ended_with(137);
    sandbox.nacre(&["exec", &neighbour, "true"]).ok();
    sandbox.nacre(&["rm", "-f", &neighbour]).ok();
}
