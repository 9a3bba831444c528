//! What a process holds in memory, the guest's memory apart.
//!
//! Guest memory is a memfd that the VMM maps, so in `/proc/PID/smaps` its mappings are told by their name.

use std::fs;

use anyhow::{Context as _, Result};

/// Memory of one process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Memory {
    /// Proportional set size of everything but the guest's memory.
    pub(super) own_pss_kib: f64,
    /// Resident pages of the guest's memory.
    pub(super) guest_kib: f64,
}

/// Reads a process's mappings.
pub(super) fn of(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps");
    Ok(sum(&fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?))
}

fn sum(smaps: &str) -> Memory {
    let mut memory = Memory { own_pss_kib: 0.0, guest_kib: 0.0 };
    let mut guest = false;
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(':').filter(|(key, _)| !key.contains(' ')) else {
            // "7f00-7f01 rw-s 00000000 00:01 1025    /memfd:name (deleted)"
            guest = line.contains("/memfd:");
            continue;
        };
        let kib = value.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0);
        match key {
            "Pss" if !guest => memory.own_pss_kib += kib,
            "Rss" if guest => memory.guest_kib += kib,
            _ => {}
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_counted_apart() {
        let smaps = "\
5500-5600 r-xp 00000000 fe:00 12    /usr/bin/nacre-vmm
Size:               1024 kB
Rss:                 500 kB
Pss:                 250 kB
Pss_Dirty:             8 kB
7f00-7f01 rw-s 00000000 00:01 1025    /memfd:guest (deleted)
Rss:               30000 kB
Pss:               30000 kB
7f02-7f03 rw-p 00000000 00:00 0    [heap]
Rss:                 100 kB
Pss:                 100 kB
";
        assert_eq!(sum(smaps), Memory { own_pss_kib: 350.0, guest_kib: 30000.0 });
    }
}
