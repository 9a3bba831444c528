//! `nacre run`: what goes in and comes out.

use nacre_tests::TestSandbox;

#[test]
fn output_and_error_stay_apart() {
    let out = TestSandbox::new().sh("echo out; echo err >&2").ok();
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn exit_status_passes_through() {
    TestSandbox::new().sh("exit 42").ended_with(42);
}

#[test]
fn process_ended_by_a_signal_gives_128_and_its_number() {
    let sandbox = TestSandbox::new();
    let id = sandbox.start(&[], &["sleep", "1000"]);
    sandbox.nacre(&["kill", "-s", "KILL", &id]).ok();
    assert_eq!(sandbox.nacre(&["wait", &id]).ok().text(), "137");
    sandbox.nacre(&["rm", &id]).ok();
}

#[test]
fn kernel_is_the_guest_s_own() {
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let guest = TestSandbox::new().run(&[], &["uname", "-r"]).ok();
    assert!(guest.text().ends_with("-guest"), "{guest:?}");
    assert_ne!(guest.text(), host.trim());
}

#[test]
fn program_is_pid_1_of_its_namespace() {
    assert_eq!(TestSandbox::new().sh("echo $$").ok().text(), "1");
}

#[test]
fn standard_input_arrives_with_its_end() {
    let sandbox = TestSandbox::new();
    let out =
        sandbox.nacre_with_input(&["run", "--rm", "-i", &TestSandbox::image(), "cat"], b"one\ntwo").ok();
    assert_eq!(out.stdout, "one\ntwo");
}

#[test]
fn without_i_standard_input_is_empty() {
    let sandbox = TestSandbox::new();
    let out = sandbox.nacre_with_input(&["run", "--rm", &TestSandbox::image(), "cat"], b"text").ok();
    assert_eq!(out.stdout, "");
}

#[test]
fn megabytes_of_output_arrive_whole() {
    let out = TestSandbox::new().sh("seq 1 300000").ok();
    let sum: u64 = out.stdout.lines().map(|line| line.parse::<u64>().unwrap()).sum();
    assert_eq!(sum, 300_000 * 300_001 / 2);
}

#[test]
fn environment_directory_and_user_are_set() {
    let options = ["-e", "COLOUR=white", "-w", "/tmp", "-u", "65534:65534"];
    let out = TestSandbox::new().run(&options, &["sh", "-c", "echo $COLOUR $PWD $(id -u) $(id -g)"]).ok();
    assert_eq!(out.text(), "white /tmp 65534 65534");
}

#[test]
fn user_is_looked_up_in_the_image() {
    assert_eq!(TestSandbox::new().run(&["-u", "nobody"], &["id", "-u"]).ok().text(), "65534");
}

#[test]
fn entrypoint_replaces_the_program() {
    assert_eq!(TestSandbox::new().run(&["--entrypoint", "echo"], &["hello"]).ok().text(), "hello");
}

#[test]
fn loopback_carries_connections() {
    let script =
        "echo hello > /tmp/x && httpd -p 127.0.0.1:8080 -h /tmp && wget -qO - http://127.0.0.1:8080/x";
    assert_eq!(TestSandbox::new().sh(script).ok().text(), "hello");
}

#[test]
fn hostname_is_set() {
    assert_eq!(TestSandbox::new().run(&["--hostname", "pearl"], &["hostname"]).ok().text(), "pearl");
}

#[test]
fn hosts_hostname_and_resolv_conf_are_the_containers_own() {
    let sandbox = TestSandbox::new();
    let script = "cat /etc/hostname; grep -c localhost /etc/hosts; test -r /etc/resolv.conf && echo resolver";
    let out = sandbox.run(&["--hostname", "pearl", "--read-only"], &["sh", "-c", script]).ok();
    assert_eq!(out.stdout, "pearl\n2\nresolver\n");
}

#[test]
fn own_file_of_the_user_stays_where_a_containers_own_would_be() {
    let dir = tempfile::tempdir().unwrap();
    let hosts = dir.path().join("hosts");
    std::fs::write(&hosts, "192.0.2.1 pearl\n").unwrap();
    let volume = format!("{}:/etc/hosts:ro", hosts.display());
    assert_eq!(
        TestSandbox::new().run(&["-v", &volume], &["cat", "/etc/hosts"]).ok().stdout,
        "192.0.2.1 pearl\n"
    );
}

#[test]
fn init_passes_signals_on_reaps_and_gives_the_programs_status() {
    let sandbox = TestSandbox::new();
    let script = "test $$ != 1 && cat /proc/1/comm; exit 7";
    let out = sandbox.run(&["--init"], &["sh", "-c", script]);
    assert_eq!((out.status, out.stdout.as_str()), (7, "nacre-init\n"));
    let id = sandbox.start(&["--init"], &["sleep", "1000"]);
    sandbox.nacre(&["kill", "-s", "TERM", &id]).ok();
    assert_eq!(sandbox.nacre(&["wait", &id]).ok().text(), "143");
    sandbox.nacre(&["rm", &id]).ok();
}

#[test]
fn init_reports_a_program_that_is_not_there() {
    TestSandbox::new().run(&["--init"], &["no-such-program"]).ended_with(127);
}

#[test]
fn read_only_root_refuses_writes() {
    let out = TestSandbox::new().run(&["--read-only"], &["sh", "-c", "touch /x"]);
    assert_ne!(out.status, 0);
    assert!(out.stderr.contains("Read-only file system"), "{out:?}");
}

#[test]
fn tmpfs_is_writable_below_a_read_only_root() {
    let options = ["--read-only", "--tmpfs", "/scratch"];
    TestSandbox::new().run(&options, &["sh", "-c", "echo x > /scratch/x"]).ok();
}

#[test]
fn writes_do_not_reach_the_next_container() {
    let sandbox = TestSandbox::new();
    sandbox.sh("echo x > /root/x").ok();
    sandbox.sh("test -e /root/x").ended_with(1);
}

#[test]
fn volume_is_shared_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("in"), "from the host").unwrap();
    let volume = format!("{}:/data", dir.path().display());
    TestSandbox::new().run(&["-v", &volume], &["sh", "-c", "cp /data/in /data/out"]).ok();
    assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "from the host");
}

#[test]
fn f10_read_only_volume_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let volume = format!("{}:/data:ro", dir.path().display());
    let out = TestSandbox::new().run(&["-v", &volume], &["touch", "/data/x"]);
    assert_ne!(out.status, 0);
    assert!(!dir.path().join("x").exists());
}

#[test]
fn capabilities_are_docker_s_default_and_can_be_dropped() {
    let sandbox = TestSandbox::new();
    let bounding = |options: &[&str]| {
        let out = sandbox.run(options, &["sh", "-c", "grep CapBnd /proc/self/status"]).ok();
        u64::from_str_radix(out.text().rsplit('\t').next().unwrap(), 16).unwrap()
    };
    assert_eq!(bounding(&[]), 0xa804_25fb);
    assert_eq!(bounding(&["--cap-drop", "ALL"]), 0);
}

#[test]
fn default_seccomp_profile_is_on_and_can_be_switched_off() {
    let sandbox = TestSandbox::new();
    let mode = |options: &[&str]| {
        let out = sandbox.run(options, &["sh", "-c", "grep Seccomp: /proc/self/status"]).ok();
        out.text().rsplit('\t').next().unwrap().to_owned()
    };
    assert_eq!(mode(&[]), "2");
    assert_eq!(mode(&["--security-opt", "seccomp=unconfined"]), "0");
}

#[test]
fn vsock_of_a_container_reaches_nobody_but_the_host() {
    // The agent's ports, at the address of the loopback and at the guest's own.
    let script = "\
import socket
def kind(cid):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
        try:
            client.connect((cid, 1025))
        except OSError as error:
            return type(error).__name__
        return 'connected'
print(kind(1), kind(3))";
    let out =
        TestSandbox::new().run(&["--security-opt", "seccomp=unconfined"], &["python3", "-c", script]).ok();
    assert!(!out.text().contains("connected"), "{}", out.text());
    assert_eq!(out.text().split(' ').count(), 2, "{}", out.text());
}

#[test]
fn ulimit_is_set() {
    assert_eq!(
        TestSandbox::new().run(&["--ulimit", "nofile=100:200"], &["sh", "-c", "ulimit -n"]).ok().text(),
        "100"
    );
}

#[test]
fn python_runs() {
    let out = TestSandbox::new().run(&[], &["python3", "-c", "print(6 * 7)"]).ok();
    assert_eq!(out.text(), "42");
}
