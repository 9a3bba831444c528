//! Which cgroup hierarchies the host has: one of version 2, several of version 1, or both (hybrid).

use std::path::PathBuf;

use crate::mount_table::{self, unescape};

/// Controllers of version 1 whose hierarchies a sandbox joins. cpuset is left out: a new group of it is of no use
/// before its CPUs and memory nodes are filled in, and a VM inherits those of the shim.
const V1_CONTROLLERS: [&str; 8] =
    ["cpu", "cpuacct", "memory", "pids", "blkio", "devices", "freezer", "net_cls"];

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its mount point.
    pub mount: PathBuf,
    /// What it is.
    pub version: Version,
}

/// Version of a hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Version {
    /// Version 1, with its controllers.
    V1(Vec<String>),
    /// Version 2.
    V2,
}

/// Reads the mounts of this process.
///
/// # Errors
/// When `/proc` is not there.
pub fn detect() -> std::io::Result<Vec<Hierarchy>> {
    Ok(parse(&mount_table::read()?))
}

/// Picks the cgroup mounts out of a mountinfo file (proc_pid_mountinfo(5)), the first of each hierarchy.
pub(super) fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        let version = match (right.next(), right.nth(1)) {
            (Some("cgroup2"), _) => Version::V2,
            (Some("cgroup"), Some(options)) => {
                let wanted = options.split(',').filter(|option| V1_CONTROLLERS.contains(option));
                Version::V1(wanted.map(str::to_owned).collect())
            }
            _ => continue,
        };
        let is_empty = matches!(&version, Version::V1(controllers) if controllers.is_empty());
        if !is_empty && !found.iter().any(|known| known.version == version) {
            found.push(Hierarchy { mount: unescape(point), version });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unified_host_has_one_hierarchy() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(parse(text), [Hierarchy { mount: "/sys/fs/cgroup".into(), version: Version::V2 }]);
    }

    #[test]
    fn hybrid_host_has_both_kinds_and_named_ones_are_skipped() {
        let text = "\
25 20 0:22 / /sys rw - sysfs sysfs rw
30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
31 25 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 25 0:29 / /sys/fs/cgroup/memory rw shared:1 master:2 - cgroup cgroup rw,memory
34 25 0:29 / /mnt/again rw - cgroup cgroup rw,memory
35 25 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
";
        let found = parse(text);
        let mounts: Vec<_> = found.iter().map(|hierarchy| hierarchy.mount.to_str().unwrap()).collect();
        assert_eq!(mounts, ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"]);
        assert_eq!(found[1].version, Version::V1(vec!["cpu".into(), "cpuacct".into()]));
    }
}
