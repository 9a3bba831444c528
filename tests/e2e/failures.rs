//! Bad input and dying parts: one line that says what happened, the right status, and nothing left behind (which
//! `TestSandbox` checks at the end of each test).

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nacre_tests::{Outcome, TestSandbox, pids};

#[track_caller]
fn assert_one_line(out: &Outcome, status: i32, words: &str) {
    assert_eq!(out.status, status, "{out:?}");
    assert!(out.stderr.to_lowercase().contains(&words.to_lowercase()), "{out:?}");
    assert_eq!(out.stderr.trim_end().lines().count(), 1, "{out:?}");
}

#[test]
fn command_not_found_gives_127() {
    assert_one_line(&TestSandbox::new().run(&[], &["nosuchprogram"]), 127, "nosuchprogram");
}

#[test]
fn command_not_executable_gives_126() {
    assert_one_line(&TestSandbox::new().run(&[], &["/etc/passwd"]), 126, "/etc/passwd");
}

#[test]
fn directory_as_command_gives_126() {
    assert_one_line(&TestSandbox::new().run(&[], &["/etc"]), 126, "/etc");
}

#[test]
fn unknown_option_gives_125() {
    assert_eq!(TestSandbox::new().run(&["--nosuchoption"], &["true"]).status, 125);
}

#[test]
fn unknown_image_gives_125() {
    let out = TestSandbox::new().nacre(&["run", "--rm", "--pull", "never", "127.0.0.1:1/no/such", "true"]);
    assert_one_line(&out, 125, "127.0.0.1:1/no/such");
}

#[test]
fn registry_that_is_down_gives_125() {
    assert_one_line(
        &TestSandbox::new().nacre(&["run", "--rm", "127.0.0.1:1/no/such", "true"]),
        125,
        "127.0.0.1:1",
    );
}

#[test]
fn name_in_use_is_refused() {
    let sandbox = TestSandbox::new();
    sandbox.start(&["--name", "taken"], &["sleep", "1000"]);
    assert_one_line(&sandbox.run(&["--name", "taken"], &["true"]), 125, "taken");
    sandbox.nacre(&["rm", "-f", "taken"]).ok();
}

#[test]
fn bad_limits_are_refused() {
    let sandbox = TestSandbox::new();
    assert_one_line(&sandbox.run(&["-m", "lots"], &["true"]), 125, "lots");
    assert_one_line(&sandbox.run(&["--cpus=-1"], &["true"]), 125, "cpus");
    assert_one_line(&sandbox.run(&["-m", "100000g"], &["true"]), 125, "memory");
}

#[test]
fn missing_volume_source_is_refused() {
    let out = TestSandbox::new().run(&["-v", "/no/such/dir:/data"], &["true"]);
    assert_one_line(&out, 125, "/no/such/dir");
}

/// `nacre run` with other guest files than the installed ones.
fn run_with_asset(name: &str, content: &[u8]) -> Outcome {
    let sandbox = TestSandbox::new();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(name), content).unwrap();
    let mut command = sandbox.command(&["run", "--rm", &TestSandbox::image(), "true"]);
    let out = command.env("NACRE_ASSETS", dir.path()).stdin(Stdio::null()).output().unwrap();
    Outcome {
        status: out.status.code().unwrap(),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

#[test]
fn corrupt_kernel_is_named() {
    assert_one_line(&run_with_asset("vmlinux", b"not a kernel"), 125, "guest kernel");
}

#[test]
fn corrupt_agent_image_is_named() {
    assert_one_line(&run_with_asset("initramfs.cpio", b"not an archive"), 125, "agent image");
}

#[test]
fn guest_without_an_init_is_a_kernel_panic_that_is_told() {
    // An archive with only its trailer: the kernel finds no /init and panics.
    let mut cpio = b"070701".to_vec();
    cpio.extend(format!("{:08x}", 0).repeat(11).bytes());
    cpio.extend(b"0000000b00000000TRAILER!!!\0\0\0\0");
    assert_one_line(&run_with_asset("initramfs.cpio", &cpio), 125, "panic");
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
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    for pid in pids(name).difference(&others) {
        std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap();
    }
    let begin = Instant::now();
    let out = child.wait_with_output().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(20), "it took {:?} to notice", begin.elapsed());
    Outcome {
        status: out.status.code().unwrap(),
        stdout: String::from_utf8_lossy(&first).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

#[test]
fn killed_vmm_is_told_at_once() {
    let out = run_and_kill("nacre-vmm");
    assert_eq!(out.stdout, "started\n");
    assert_one_line(&out, 125, "vm");
}

#[test]
fn killed_shim_is_told_at_once() {
    let out = run_and_kill("containerd-shim");
    assert_one_line(&out, 125, "shim");
}
