//! The init that a container may ask for.

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::fixture::{Started, TestGuest, chain, wait};

fn spec(guest: &TestGuest, script: &str) -> Value {
    let mut spec = guest.spec(script);
    spec["annotations"] = json!({"dev.nacre.init": "true"});
    spec
}

fn start(guest: &TestGuest, script: &str) -> Started {
    guest.create(&spec(guest, script)).unwrap_or_else(|error| panic!("{}", chain(&error))).start()
}

fn signal(started: &Started, number: i32) {
    let pid = rustix::process::Pid::from_raw(started.child.pid().try_into().unwrap()).unwrap();
    match Signal::from_named_raw(number) {
        Some(signal) => kill_process(pid, signal).unwrap(),
        // A real-time signal, which only a program can send here.
        None => drop(crate::fixture::run(
            std::process::Command::new("kill").args([format!("-{number}"), pid.as_raw_nonzero().to_string()]),
        )),
    }
}

#[test]
fn program_is_a_child_of_an_init_that_is_pid_1() {
    let guest = TestGuest::new();
    let script = "cat /proc/1/comm; grep PPid /proc/$$/status; test $$ != 1 && echo not first";
    assert_eq!(guest.run(&spec(&guest, script)).stdout, "nacre-init\nPPid:\t1\nnot first\n");
}

#[test]
fn without_the_annotation_the_program_is_pid_1() {
    let guest = TestGuest::new();
    assert_eq!(guest.sh("echo $$").stdout, "1\n");
}

#[test]
fn status_is_the_programs() {
    let guest = TestGuest::new();
    assert_eq!(guest.run(&spec(&guest, "exit 7")).status, 7);
    assert_eq!(guest.run(&spec(&guest, "kill -9 $$")).status, 137);
    // A program that is PID 1 would not notice.
    assert_eq!(guest.run(&spec(&guest, "kill -15 $$")).status, 143);
}

#[test]
fn signals_are_passed_on_to_the_program() {
    let guest = TestGuest::new();
    // SIGTERM, SIGUSR1, SIGABRT and a real-time signal.
    for number in [15, 10, 6, 37] {
        let script = format!("trap 'exit 40' {number}; echo ready; while :; do read line; done");
        let mut started = start(&guest, &script);
        assert_eq!(started.line(), "ready");
        signal(&started, number);
        assert_eq!(started.finish().status, 40, "{number}");
    }
}

#[test]
fn signal_without_a_handler_ends_the_program() {
    let guest = TestGuest::new();
    let mut started = start(&guest, "echo ready; exec sleep 100000");
    assert_eq!(started.line(), "ready");
    signal(&started, 2);
    assert_eq!(started.finish().status, 130);
}

#[test]
fn orphans_are_reaped() {
    let guest = TestGuest::new();
    // An orphan's number is free again once it is reaped.
    let script = "sh -c 'sleep 0.01 & echo $!' > /tmp/pid; \
                  while test -e /proc/$(cat /tmp/pid); do sleep 0.01; done; echo gone";
    assert_eq!(guest.run(&spec(&guest, script)).stdout, "gone\n");
}

#[test]
fn end_of_the_program_ends_what_it_left_behind() {
    let guest = TestGuest::new();
    // The sleeper holds the output open: without the end of the namespace this test would run for ever.
    let ended = guest.run(&spec(&guest, "sleep 100000 & echo left"));
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "left\n"));
}

#[test]
fn program_that_cannot_be_executed_fails_the_start() {
    let guest = TestGuest::new();
    std::fs::write(guest.image("script"), "#!/no/such/interpreter\n").unwrap();
    std::fs::write(guest.image("noise"), "\u{7f}noise").unwrap();
    for name in ["script", "noise"] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(guest.image(name), mode).unwrap();
    }
    for (program, status) in [("/script", 127), ("/noise", 126)] {
        let mut spec = spec(&guest, "");
        spec["process"]["args"] = json!([program]);
        let created = guest.create(&spec).unwrap().created;
        let error = created.init.starter.start().unwrap_err();
        assert_eq!((error.exit_status(), wait(&created.init.child)), (status, status), "{error}");
        created.container.remove().unwrap();
    }
    let mut missing = spec(&guest, "");
    missing["process"]["args"] = json!(["nope"]);
    assert!(guest.refusal(&missing).contains("executable file not found in $PATH"));
}

#[test]
fn c01_init_has_the_programs_confinement_and_no_further_descriptor() {
    let guest = TestGuest::new();
    // CAP_SYS_PTRACE, so that the container may look at all.
    let mut spec =
        spec(&guest, "ls /proc/1/fd; grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status");
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE"]);
    }
    // As the usual profiles: clone3 is not there.
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]});
    let ended = guest.run(&spec);
    let caps = "0000000000080000";
    let expected =
        format!("0\n1\n2\nUid:\t0\t0\t0\t0\nCapEff:\t{caps}\nCapBnd:\t{caps}\nNoNewPrivs:\t1\nSeccomp:\t2\n");
    assert_eq!(ended.stdout, expected, "{}", ended.stderr);
}

#[test]
fn filter_that_refuses_close_range_does_not_hold_the_start() {
    let guest = TestGuest::new();
    let mut spec = spec(&guest, "echo started");
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["close_range", "clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
    assert_eq!(guest.run(&spec).stdout, "started\n");
}

#[test]
fn filter_that_refuses_to_wait_for_signals_leaves_the_reaping() {
    let guest = TestGuest::new();
    let mut spec = spec(&guest, "sh -c 'exit 3' & exit 9");
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["rt_sigtimedwait"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
    assert_eq!(guest.run(&spec).status, 9);
}

#[test]
fn c02_agents_binary_cannot_be_written_through_the_init() {
    let guest = TestGuest::new();
    let before = std::fs::read(&guest.guest.agent_exe).unwrap();
    let mut spec =
        spec(&guest, "head -c 4 /proc/1/exe | tail -c 3; echo; (echo x > /proc/1/exe) || echo refused");
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
    }
    assert_eq!(guest.run(&spec).stdout, "ELF\nrefused\n");
    assert!(std::fs::read(&guest.guest.agent_exe).unwrap() == before);
}

#[test]
fn c15_init_cannot_be_looked_into() {
    let guest = TestGuest::new();
    let script = "for file in exe fd/0 root cwd; do readlink /proc/1/$file && echo seen $file; done; \
                  cat /proc/1/environ /proc/1/maps && echo read; echo done";
    assert_eq!(guest.run(&spec(&guest, script)).stdout, "done\n");
}

#[test]
fn program_is_in_the_foreground_of_its_terminal() {
    use std::io::Read;
    let guest = TestGuest::new();
    // Fields 5 and 8 of stat: process group of the process, and of the terminal's foreground.
    let mut spec =
        spec(&guest, "set -- $(cat /proc/$$/stat); test $5 = $8 && test $5 = $$ && echo foreground");
    spec["process"]["terminal"] = json!(true);
    let created = guest.create_with_terminal(&spec).unwrap_or_else(|error| panic!("{}", chain(&error)));
    created.init.starter.start().unwrap();
    assert_eq!(wait(&created.init.child), 0);
    let mut text = Vec::new();
    // EIO: the last process with the terminal is gone.
    let _ = std::fs::File::from(created.init.terminal.unwrap()).read_to_end(&mut text);
    assert_eq!(String::from_utf8_lossy(&text), "foreground\r\n");
    created.container.remove().unwrap();
}

#[test]
fn process_that_is_executed_later_is_its_own_program() {
    let guest = TestGuest::new();
    let mut started = start(&guest, "echo up; read line");
    assert_eq!(started.line(), "up");
    let process = json!({"user": {}, "args": ["sh", "-c", "cat /proc/$$/comm; exit 4"], "cwd": "/",
        "env": ["PATH=/usr/bin:/bin"]});
    let ended = started.exec(&guest, &process).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!((ended.status, ended.stdout.as_str()), (4, "sh\n"));
    started.say("\n");
    assert_eq!(started.finish().status, 0);
}
