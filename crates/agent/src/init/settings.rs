//! Kernel settings that suit a machine which runs containers and nothing else.

use std::fs;

/// Files under /proc/sys and their values.
const SETTINGS: [(&str, &str); 3] = [
    // As kubelet asks of its nodes: what a container may use is its cgroup's business.
    ("/proc/sys/vm/overcommit_memory", "1"),
    // What search engines and databases ask their hosts to set.
    ("/proc/sys/vm/max_map_count", "262144"),
    // The default of 32768 is for 32-bit programs; a pid that comes round late is harder to confuse.
    ("/proc/sys/kernel/pid_max", "4194304"),
];

/// Sets them. A kernel without one of them still serves.
pub(super) fn apply() {
    for (path, value) in SETTINGS {
        if let Err(error) = fs::write(path, value) {
            tracing::warn!(path, %error, "kernel setting not changed");
        }
    }
}
