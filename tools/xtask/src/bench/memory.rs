//! What a process holds in memory, the guest's memory apart.
//!
//! In `/proc/PID/smaps` the guest's memory is told by what the VMM advised for it: never in core dumps (`dd`), never
//! copied to child processes (`dc`). It is anonymous, or the memory file, or the kernel's file where its pages are mapped
//! into the guest. A file server maps the memory file without such advice; there the file's name tells.

use std::fs;

use anyhow::{Context as _, Result};

/// Memory of one process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Memory {
    /// Proportional set size of everything but the guest's memory.
    pub(crate) own_pss_kib: f64,
    /// Resident pages of everything but the guest's memory, whoever else has them too.
    pub(crate) own_rss_kib: f64,
    /// Resident pages of the guest's memory.
    pub(crate) guest_kib: f64,
}

/// Reads a process's mappings.
pub(crate) fn of(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps");
    Ok(sum(&fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?))
}

/// What the VMM calls the guest's memory file.
const MEMORY_FILE: &str = "/memfd:guest";

/// One mapping, as far as its lines have been read.
#[derive(Default)]
struct Mapping {
    may_be_guest: bool,
    is_guest: bool,
    rss_kib: f64,
    pss_kib: f64,
}

fn sum(smaps: &str) -> Memory {
    let mut memory = Memory { own_pss_kib: 0.0, own_rss_kib: 0.0, guest_kib: 0.0 };
    let mut mapping = Mapping::default();
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(':').filter(|(key, _)| !key.contains(' ')) else {
            // "7f00-7f01 rw-s 00000000 00:01 1025    /memfd:name (deleted)"
            let path = line.split_whitespace().nth(5).unwrap_or_default();
            // KVM's own mappings have the same flags.
            let may_be_guest = !path.starts_with("anon_inode:");
            mapping = Mapping { may_be_guest, is_guest: path == MEMORY_FILE, ..Mapping::default() };
            continue;
        };
        let kib = || value.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0);
        match key {
            "Rss" => mapping.rss_kib = kib(),
            "Pss" => mapping.pss_kib = kib(),
            // The last line of a mapping.
            "VmFlags" => {
                let has = |flag| value.split_whitespace().any(|found| found == flag);
                if mapping.is_guest || (mapping.may_be_guest && has("dd") && has("dc")) {
                    memory.guest_kib += mapping.rss_kib;
                } else {
                    memory.own_pss_kib += mapping.pss_kib;
                    memory.own_rss_kib += mapping.rss_kib;
                }
            }
            _ => {}
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(line: &str, rss: u32, flags: &str) -> String {
        format!(
            "{line}\nSize: 1024 kB\nRss: {rss} kB\nPss: {} kB\nPss_Dirty: 8 kB\nVmFlags: {flags}\n",
            rss / 2
        )
    }

    #[test]
    fn guest_memory_is_counted_apart() {
        let smaps = [
            mapping("5500-5600 r-xp 00000000 fe:00 12    /usr/bin/nacre-vmm", 250, "rd ex mr mw me"),
            mapping(
                "7f00-7f01 rw-s 00000000 00:01 1025    /memfd:guest (deleted)",
                30_000,
                "rd wr sh dc dd nh",
            ),
            mapping(
                "7f01-7f02 rw-s 00000000 00:01 1025    /memfd:guest (deleted)",
                40,
                "rd wr sh mr mw me ms",
            ),
            mapping("7f01-7f02 rw-p 00000000 00:00 0", 2_000, "rd wr mr mw me dc nr dd hg"),
            mapping("7f02-7f03 rw-p 00000000 00:00 0    [heap]", 100, "rd wr mr mw me ac"),
            mapping(
                "7f02-7f03 rw-p 00200000 fe:00 14    /usr/lib/nacre/vmlinux",
                4_000,
                "rd wr mr mw dc nr dd",
            ),
            mapping("7f03-7f04 rw-s 00000000 00:0e 13    anon_inode:kvm-vcpu:0", 16, "rd wr sh dc de dd"),
        ]
        .concat();
        assert_eq!(sum(&smaps), Memory { own_pss_kib: 183.0, own_rss_kib: 366.0, guest_kib: 36_040.0 });
    }
}
