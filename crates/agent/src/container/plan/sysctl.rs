//! `linux.sysctl`: only what a namespace holds, so that one container cannot change another's kernel.

use std::collections::HashMap;

use super::InvalidSpec;

const MAX_SYSCTLS: usize = 256;
const MAX_VALUE: usize = 4096;

/// System V IPC and POSIX message queues: per IPC namespace.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Paths below /proc/sys in a stable order, with their values.
pub(super) fn from_linux(
    sysctls: Option<&HashMap<String, String>>,
) -> Result<Vec<(String, String)>, InvalidSpec> {
    let Some(sysctls) = sysctls else { return Ok(Vec::new()) };
    if sysctls.len() > MAX_SYSCTLS {
        return Err(InvalidSpec::Unsupported(format!("more than {MAX_SYSCTLS} sysctls")));
    }
    let mut all = Vec::with_capacity(sysctls.len());
    for (key, value) in sysctls {
        let bad = |problem| InvalidSpec::Sysctl { key: key.clone(), problem };
        let path = path(key).ok_or_else(|| bad("the name is malformed"))?;
        if !namespaced(&path) {
            return Err(bad("it is not of a namespace, so it would change the whole guest"));
        }
        // H03: one line, one value.
        if value.len() > MAX_VALUE || value.bytes().any(|byte| matches!(byte, b'\0' | b'\n')) {
            return Err(bad("the value is too long, or has a newline or NUL"));
        }
        all.push((path, value.clone()));
    }
    all.sort();
    Ok(all)
}

/// sysctl(8): the first separator, `.` or `/`, decides what separates; the other one then stands for itself.
fn path(key: &str) -> Option<String> {
    let separator = key.chars().find(|c| matches!(c, '.' | '/'))?;
    let swapped = key.chars().map(|c| match c {
        '.' if separator == '.' => '/',
        '/' if separator == '.' => '.',
        c => c,
    });
    let path: String = swapped.collect();
    let good = |part: &str| {
        let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.' | b'@' | b':');
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(legal)
    };
    (path.len() < 256 && path.split('/').all(good)).then_some(path)
}

/// Network sysctls count as namespaced even where the container shares the guest's network: all containers that do
/// are one pod, and the guest has no other use for them.
fn namespaced(path: &str) -> bool {
    IPC.contains(&path) || path.starts_with("fs/mqueue/") || path.starts_with("net/")
}
