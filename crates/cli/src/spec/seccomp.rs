//! The seccomp profile: Docker's default policy for x86-64, or a file in Docker's format.
//!
//! The policy is an allow-list; what is not on it fails with EPERM (ENOSYS for clone3, so that libraries fall back
//! to clone). What Docker ties to a capability is allowed only with that capability. The guest kernel runs no
//! 32-bit code, so x86-64 is the only architecture.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::SpecError;

/// Largest profile file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET: a clone without CAP_SYS_ADMIN has none.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;

/// AF_VSOCK: the way to the host's side of a VM, not for containers.
const AF_VSOCK: u64 = 40;

/// EPERM and ENOSYS.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// personality(2) values that may be asked for: PER_LINUX, PER_LINUX32, UNAME26 with each, and "tell me".
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// System calls that every container may make, whatever their arguments.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown clock_adjtime
    clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
    eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod
    fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
    fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents
    getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority
    getrandom getresgid getresuid getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area
    gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
    io_cancel ioctl io_destroy io_getevents io_pgetevents ioprio_get ioprio_set io_setup io_submit kill
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listmount
    listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier
    memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr
    mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock
    munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal
    pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64
    process_mrelease pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg
    recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto setfsgid setfsuid
    setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit set_robust_list
    setsid setsockopt set_thread_area set_tid_address setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown
    sigaltstack signalfd signalfd4 socketpair splice stat statfs statmount statx symlink symlinkat sync
    sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat
    uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write writev
    ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd arch_prctl modify_ldt";

/// System calls that come with a capability.
const WITH_CAPABILITY: [(&str, &str); 13] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday clock_settime"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// The default policy for a container with these capabilities (OCI `linux.seccomp`).
pub(super) fn default_profile(caps: &[String]) -> Value {
    let has = |cap: &str| caps.iter().any(|have| have == cap);
    let mut names: Vec<&str> = ALLOWED.split_whitespace().collect();
    for (cap, calls) in WITH_CAPABILITY {
        if has(cap) {
            names.extend(calls.split_whitespace());
        }
    }
    if has("CAP_BPF") && !names.contains(&"bpf") {
        names.push("bpf");
    }
    names.sort_unstable();
    names.dedup();
    let mut calls = vec![json!({ "names": names, "action": "SCMP_ACT_ALLOW" })];
    for value in PERSONALITIES {
        calls.push(rule("personality", "SCMP_CMP_EQ", value, None));
    }
    calls.push(rule("socket", "SCMP_CMP_NE", AF_VSOCK, None));
    if !has("CAP_SYS_ADMIN") {
        calls.push(rule("clone", "SCMP_CMP_MASKED_EQ", CLONE_NAMESPACES, Some(0)));
        calls.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": calls,
    })
}

fn rule(name: &str, op: &str, value: u64, value_two: Option<u64>) -> Value {
    let mut arg = json!({ "index": 0, "value": value, "op": op });
    if let Some(value_two) = value_two {
        arg["valueTwo"] = json!(value_two);
    }
    json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": [arg] })
}

/// A profile in Docker's format: OCI's, with `includes` and `excludes` by capability and architecture.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<ProfileCall>,
    #[serde(default)]
    flags: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileCall {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Value>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Debug, Default, Deserialize)]
struct Filter {
    #[serde(default)]
    caps: Vec<String>,
    #[serde(default)]
    arches: Vec<String>,
}

impl Filter {
    fn matches_all(&self, caps: &[String]) -> bool {
        self.caps.iter().all(|cap| caps.contains(cap))
            && (self.arches.is_empty() || self.arches.iter().any(|arch| is_ours(arch)))
    }

    fn matches_any(&self, caps: &[String]) -> bool {
        self.caps.iter().any(|cap| caps.contains(cap)) || self.arches.iter().any(|arch| is_ours(arch))
    }
}

fn is_ours(arch: &str) -> bool {
    matches!(arch, "amd64" | "x86_64" | "SCMP_ARCH_X86_64")
}

/// Reads a profile file and settles its conditions for this container.
pub(super) fn from_file(path: &Path, caps: &[String]) -> Result<Value, SpecError> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut text))
        .map_err(|source| SpecError::File { path: path.to_owned(), source })?;
    let profile: Profile = serde_json::from_slice(&text)
        .map_err(|source| SpecError::Profile { path: path.to_owned(), source })?;
    Ok(settle(profile, caps))
}

fn settle(profile: Profile, caps: &[String]) -> Value {
    let wanted = |call: &ProfileCall| call.includes.matches_all(caps) && !call.excludes.matches_any(caps);
    let calls: Vec<Value> = profile
        .syscalls
        .into_iter()
        .filter(wanted)
        .map(|mut call| {
            call.names.extend(call.name);
            let mut out = json!({ "names": call.names, "action": call.action });
            if let Some(errno) = call.errno_ret {
                out["errnoRet"] = json!(errno);
            }
            if let Some(args) = call.args.filter(|args| !args.is_empty()) {
                out["args"] = Value::Array(args);
            }
            out
        })
        .collect();
    let mut out = json!({
        "defaultAction": profile.default_action,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": calls,
    });
    if let Some(errno) = profile.default_errno_ret {
        out["defaultErrnoRet"] = json!(errno);
    }
    if !profile.flags.is_empty() {
        out["flags"] = json!(profile.flags);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &Value, name: &str) -> bool {
        profile["syscalls"].as_array().unwrap().iter().any(|call| {
            call["action"] == "SCMP_ACT_ALLOW"
                && call["names"].as_array().unwrap().iter().any(|known| known == name)
                && call.get("args").is_none()
        })
    }

    #[test]
    fn default_policy_allows_work_and_refuses_the_kernels_levers() {
        let profile = default_profile(&[]);
        for name in ["read", "openat", "execve", "futex", "statx"] {
            assert!(allowed(&profile, name), "{name}");
        }
        for name in [
            "mount",
            "bpf",
            "kexec_load",
            "init_module",
            "reboot",
            "add_key",
            "keyctl",
            "userfaultfd",
            "io_uring_setup",
            "unshare",
            "clone",
            "clone3",
        ] {
            assert!(!allowed(&profile, name), "{name}");
        }
    }

    #[test]
    fn capability_brings_its_calls() {
        let profile = default_profile(&["CAP_SYS_ADMIN".into()]);
        assert!(allowed(&profile, "mount") && allowed(&profile, "clone3"));
        assert!(!allowed(&profile, "reboot"));
    }

    #[test]
    fn file_conditions_are_settled() {
        let profile: Profile = serde_json::from_value(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                { "names": ["a"], "action": "SCMP_ACT_ALLOW" },
                { "names": ["b"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_X"] } },
                { "names": ["c"], "action": "SCMP_ACT_ALLOW", "excludes": { "caps": ["CAP_Y"] } },
                { "names": ["d"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["s390x"] } },
            ],
        }))
        .unwrap();
        let value = settle(profile, &["CAP_Y".into()]);
        let names: Vec<_> =
            value["syscalls"].as_array().unwrap().iter().map(|call| call["names"][0].clone()).collect();
        assert_eq!(names, ["a"]);
    }
}
