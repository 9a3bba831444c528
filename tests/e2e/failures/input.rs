//! Options, names, limits and programs that cannot be.

use nacre_tests::TestSandbox;

use super::assert_one_line;

#[test]
fn command_not_found_gives_127() {
    assert_one_line(&TestSandbox::new().run(&[], &["nosuchprogram"]), 127, &["nosuchprogram", "not found"]);
}

#[test]
fn command_not_executable_gives_126() {
    let out = TestSandbox::new().run(&[], &["/etc/passwd"]);
    assert_one_line(&out, 126, &["/etc/passwd", "permission denied"]);
}

#[test]
fn directory_as_command_gives_126() {
    assert_one_line(&TestSandbox::new().run(&[], &["/etc"]), 126, &["/etc"]);
}

#[test]
fn script_without_an_interpreter_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/no/such/shell\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let volume = format!("{}:/data", dir.path().display());
    let out = TestSandbox::new().run(&["-v", &volume], &["/data/script"]);
    assert_one_line(&out, 127, &["/data/script"]);
}

#[test]
fn unknown_option_gives_125() {
    let out = TestSandbox::new().run(&["--nosuchoption"], &["true"]);
    assert_eq!(out.status, 125, "{out:?}");
    assert!(out.stderr.contains("--nosuchoption"), "{out:?}");
}

#[test]
fn unknown_image_gives_125() {
    let out = TestSandbox::new().nacre(&["run", "--rm", "--pull", "never", "127.0.0.1:1/no/such", "true"]);
    assert_one_line(&out, 125, &["127.0.0.1:1/no/such", "not in the store", "--pull"]);
}

#[test]
fn name_in_use_is_refused() {
    let sandbox = TestSandbox::new();
    sandbox.start(&["--name", "taken"], &["sleep", "1000"]);
    assert_one_line(&sandbox.run(&["--name", "taken"], &["true"]), 125, &["taken", "in use"]);
    sandbox.nacre(&["rm", "-f", "taken"]).ok();
}

#[test]
fn bad_limits_are_refused() {
    let sandbox = TestSandbox::new();
    assert_one_line(&sandbox.run(&["-m", "lots"], &["true"]), 125, &["--memory", "lots"]);
    assert_one_line(&sandbox.run(&["--cpus=-1"], &["true"]), 125, &["--cpus", "0.01"]);
}

#[test]
fn more_memory_than_the_machine_has_is_refused_with_what_it_has() {
    let out = TestSandbox::new().run(&["-m", "100000g"], &["true"]);
    assert_one_line(&out, 125, &["--memory", "this machine has", "MiB"]);
}

#[test]
fn more_cpus_than_the_machine_has_are_refused_with_what_it_has() {
    let out = TestSandbox::new().run(&["--cpus", "4096"], &["true"]);
    assert_one_line(&out, 125, &["--cpus", "CPUs available"]);
}

#[test]
fn volume_source_that_cannot_be_made_is_refused() {
    let out = TestSandbox::new().run(&["-v", "/proc/nosuch:/data"], &["true"]);
    assert_one_line(&out, 125, &["/proc/nosuch"]);
}

#[test]
fn container_that_is_not_there_is_told_by_every_verb() {
    let sandbox = TestSandbox::new();
    for verb in ["logs", "stop", "kill", "rm", "wait", "inspect"] {
        let out = sandbox.nacre(&[verb, "nosuch"]);
        assert_ne!(out.status, 0, "{verb}: {out:?}");
        assert_one_line(&out, out.status, &["nosuch"]);
    }
    assert_one_line(&sandbox.nacre(&["exec", "nosuch", "true"]), 125, &["nosuch"]);
}
