//! User, groups, capabilities, limits, environment, working directory, seccomp.

use serde_json::json;

use crate::fixture::TestGuest;

fn status_field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).unwrap()
}

#[test]
fn c12_ids_and_groups_are_the_configurations() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("id -u; id -g; id -G");
    spec["process"]["user"] = json!({"uid": 1000, "gid": 2000, "additionalGids": [5, 7]});
    assert_eq!(guest.run(&spec).stdout, "1000\n2000\n2000 5 7\n");
}

#[test]
fn c12_without_groups_only_the_primary_one_is_left() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("grep Groups /proc/self/status");
    spec["process"]["user"] = json!({"uid": 1000, "gid": 2000});
    assert_eq!(guest.run(&spec).stdout.trim_end(), "Groups:\t2000");
}

#[test]
fn c11_user_text_is_looked_up_in_the_image() {
    let guest = TestGuest::new();
    let ids = |text: &str| {
        let mut spec = guest.spec("echo $(id -u) $(id -g) $(id -G) $HOME");
        spec["process"]["user"] = json!({"uid": 0, "gid": 0, "username": text});
        guest.run(&spec).stdout
    };
    assert_eq!(ids("web"), "33 33 33 29 /var/www\n");
    assert_eq!(ids("33:audio"), "33 29 29 /var/www\n");
    assert_eq!(ids("2147483648"), "2147483648 0 0 /\n");
    assert_eq!(ids("007:8"), "7 8 8 /\n");
}

#[test]
fn c11_user_that_is_nobody_is_refused() {
    let guest = TestGuest::new();
    for text in ["nobody", "+0", "1:", "-1", "4294967295", "4294967296"] {
        let mut spec = guest.spec("id");
        spec["process"]["user"] = json!({"uid": 0, "gid": 0, "username": text});
        assert!(guest.refusal(&spec).starts_with("resolve user"), "{text}");
    }
}

#[test]
fn c13_passwd_that_is_no_file_is_refused() {
    let guest = TestGuest::new();
    std::fs::remove_file(guest.image("etc/passwd")).unwrap();
    nix::unistd::mkfifo(&guest.image("etc/passwd"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(guest.refusal(&guest.spec("id")).contains("is not a regular file"));
}

#[test]
fn c08_capability_sets_are_exact() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("cat /proc/self/status");
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_NET_RAW", "CAP_KILL"], "permitted": ["CAP_NET_RAW", "CAP_KILL"],
        "effective": ["CAP_NET_RAW"], "inheritable": ["CAP_NET_RAW"], "ambient": ["CAP_NET_RAW"]
    });
    let status = guest.run(&spec).stdout;
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|name| status_field(&status, name));
    let raw = "0000000000002000";
    assert_eq!(sets, [raw, raw, raw, "0000000000002021", raw]);
}

#[test]
fn c08_inheritable_and_ambient_are_empty_unless_asked() {
    let guest = TestGuest::new();
    let status = guest.sh("cat /proc/self/status").stdout;
    let sets = ["CapInh", "CapAmb", "CapEff", "CapBnd"].map(|name| status_field(&status, name));
    assert_eq!(sets, ["0000000000000000", "0000000000000000", "0000000020000420", "0000000020000420"]);
}

#[test]
fn without_capabilities_there_are_none() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("cat /proc/self/status");
    spec["process"].as_object_mut().unwrap().remove("capabilities");
    let status = guest.run(&spec).stdout;
    assert_eq!(status_field(&status, "CapBnd"), "0000000000000000");
    assert_eq!(status_field(&status, "CapEff"), "0000000000000000");
}

#[test]
fn no_new_privileges_is_as_asked() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("grep NoNewPrivs /proc/self/status");
    assert_eq!(guest.run(&spec).stdout, "NoNewPrivs:\t1\n");
    spec["process"]["noNewPrivileges"] = json!(false);
    assert_eq!(guest.run(&spec).stdout, "NoNewPrivs:\t0\n");
}

#[test]
fn limits_priorities_and_umask_are_set() {
    let guest = TestGuest::new();
    let script = "ulimit -Sn; ulimit -Hn; ulimit -Sc; umask; cat /proc/self/oom_score_adj; ionice; nice";
    let mut spec = guest.spec(script);
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 512},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    spec["process"]["user"] = json!({"uid": 5, "gid": 5, "umask": 0o77});
    spec["process"]["oomScoreAdj"] = json!(77);
    spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    assert_eq!(guest.run(&spec).stdout, "9\n512\n0\n0077\n77\nbest-effort: prio 6\n5\n");
}

#[test]
fn standard_streams_belong_to_the_user() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("echo again > /dev/stdout; echo bad > /dev/stderr; : < /dev/stdin; echo $?");
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let ended = guest.run(&spec);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("again\n0\n", "bad\n"));
}

#[test]
fn signals_are_neither_ignored_nor_blocked() {
    let guest = TestGuest::new();
    let status = guest.sh("exec cat /proc/self/status").stdout;
    for name in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(status_field(&status, name), "0000000000000000", "{name}");
    }
}

#[test]
fn working_directory_is_made_and_entered() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("pwd; stat -c %u:%a .");
    spec["process"]["cwd"] = json!("/srv/app");
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    assert_eq!(guest.run(&spec).stdout, "/srv/app\n0:755\n");
}

#[test]
fn environment_is_the_configurations_with_home_and_path() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("env | sort");
    spec["process"]["args"] = json!(["env"]);
    spec["process"]["env"] = json!(["A=one\ntwo", "B="]);
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(guest.run(&spec).stdout, format!("A=one\ntwo\nB=\nHOME=/root\nPATH={path}\n"));
    spec["process"]["env"] = json!(["HOME=/elsewhere", "PATH=/usr/bin"]);
    assert_eq!(guest.run(&spec).stdout, "HOME=/elsewhere\nPATH=/usr/bin\n");
}

#[test]
fn c09_large_arguments_and_environment_arrive_whole() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("echo ${#BIG}; echo ${#1}");
    spec["process"]["args"].as_array_mut().unwrap().extend([json!("x"), json!("y".repeat(100_000))]);
    spec["process"]["env"].as_array_mut().unwrap().push(json!(format!("BIG={}", "z".repeat(120_000))));
    assert_eq!(guest.run(&spec).stdout, "120000\n100000\n");
}

fn denying(names: &[&str], errno: u32) -> serde_json::Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]})
}

#[test]
fn seccomp_profile_decides_calls() {
    let guest = TestGuest::new();
    for no_new_privileges in [true, false] {
        let mut spec =
            guest.spec("grep Seccomp: /proc/self/status; mkdir /tmp/d 2>&1; grep CapEff /proc/self/status");
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        spec["linux"]["seccomp"] = denying(&["mkdir", "mkdirat"], 28);
        let ended = guest.run(&spec);
        let lines: Vec<_> = ended.stdout.lines().collect();
        assert_eq!(lines[0], "Seccomp:\t2");
        assert!(lines[1].ends_with("No space left on device"), "{ended:?}");
        assert_eq!(lines[2], "CapEff:\t0000000020000420");
    }
}

#[test]
fn seccomp_profile_may_deny_all_but_what_the_program_needs() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("");
    spec["process"]["args"] = json!(["/bin/true"]);
    let names = [
        "execve",
        "brk",
        "mmap",
        "mprotect",
        "munmap",
        "openat",
        "read",
        "pread64",
        "close",
        "fstat",
        "newfstatat",
        "access",
        "arch_prctl",
        "set_tid_address",
        "set_robust_list",
        "rseq",
        "prlimit64",
        "exit_group",
        "getrandom",
        "futex",
    ];
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]});
    assert_eq!(guest.run(&spec).status, 0);
}

#[test]
fn seccomp_notification_is_refused() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("");
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]});
    assert!(guest.refusal(&spec).contains("SCMP_ACT_NOTIFY is not supported"));
}

#[test]
fn personality_is_set() {
    let guest = TestGuest::new();
    let mut spec = guest.spec("uname -m");
    spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    assert_eq!(guest.run(&spec).stdout, "i686\n");
}
