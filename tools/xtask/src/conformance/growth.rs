//! Whether anything grows while containers come and go.
//!
//! A shim, VMM or file server is one container's, so what stays is containerd, the kernel, and how much a process of each kind
//! holds. Resident memory is told, not the proportional share: that of a process rises when another one ends that has the
//! same program. Counted are processes that were there at the look before too, which leaves out the shim's short `start`
//! and `delete`, and VMMs whose vCPUs have threads: until then a VMM has the kernel's file mapped to copy it to the guest, up to
//! 13 MiB of the page cache that are gone before the guest starts.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nacre_tests::pids;
use serde::{Deserialize, Serialize};

use crate::bench::memory;

/// Between two looks at the memory of all processes.
const EVERY: Duration = Duration::from_secs(2);

/// Processes that are looked at, by the begin of their name; the first is the one containerd.
const NAMES: [&str; 4] = ["containerd", "containerd-shim", "nacre-vmm", "nacre-fs"];

/// A process at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    name: &'static str,
    /// Since the begin.
    at: Duration,
    /// Resident, the guest's memory apart.
    kib: f64,
}

/// Looks at every process of nacre, and at one containerd, until it is over.
pub(super) fn watch(containerd: u32, is_over: &AtomicBool) -> Vec<Sample> {
    let begin = Instant::now();
    let (mut samples, mut known) = (Vec::new(), BTreeSet::new());
    while !is_over.load(Ordering::Relaxed) {
        let mut seen = BTreeSet::new();
        for name in NAMES {
            let found = if name == NAMES[0] { BTreeSet::from([containerd]) } else { pids(name) };
            for pid in found {
                seen.insert(pid);
                if !known.contains(&pid) || (name == "nacre-vmm" && !has_vcpus(pid)) {
                    continue;
                }
                // One that has just ended cannot be read, and one that is about to end has no memory any more.
                let Ok(memory) = memory::of(pid) else { continue };
                if memory.own_rss_kib > 0.0 {
                    samples.push(Sample { name, at: begin.elapsed(), kib: memory.own_rss_kib });
                }
            }
        }
        known = seen;
        thread::sleep(EVERY);
    }
    samples
}

fn has_vcpus(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = threads.map(|thread| fs::read_to_string(thread.path().join("comm")).unwrap_or_default());
    names.into_iter().any(|name| name.starts_with("vcpu"))
}

/// Memory of the processes of a name, in KiB: median and largest in each quarter of the time. None where none was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Memory {
    name: String,
    quarters: [Option<(f64, f64)>; 4],
}

/// Sorts the samples of so long a time into its quarters.
pub(super) fn quarters(samples: &[Sample], all: Duration) -> Vec<Memory> {
    let of = |name: &str| {
        let mut values: [Vec<f64>; 4] = Default::default();
        for sample in samples.iter().filter(|sample| sample.name == name) {
            let part = 4.0 * sample.at.as_secs_f64() / all.as_secs_f64().max(f64::MIN_POSITIVE);
            values[(part as usize).min(3)].push(sample.kib);
        }
        let quarters = values.map(|mut values| {
            values.sort_by(f64::total_cmp);
            Some((*values.get(values.len() / 2)?, *values.last()?))
        });
        Memory { name: name.to_owned(), quarters }
    };
    NAMES.map(of).into()
}

impl Memory {
    /// A line of the table.
    pub(super) fn line(&self) -> String {
        let quarters = self.quarters.map(|quarter| match quarter {
            Some((median, largest)) => format!("{:>15}", format!("{median:.0} ({largest:.0})")),
            None => format!("{:>15}", "-"),
        });
        format!("  {:<16}{}\n", self.name, quarters.concat())
    }
}

/// What outlives every container, in numbers that would rise with what is left of each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Descriptors that containerd has open: connections to shims, for one.
    containerd_descriptors: usize,
    /// Slabs that the kernel cannot take back, and its memory for each CPU.
    kernel_kib: u64,
    /// Removed cgroups that pages in use are still charged to.
    dying_cgroups: u64,
}

impl Kept {
    /// What there is now.
    pub(super) fn now(containerd: u32) -> Self {
        let field = |path: &str, key: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let mut lines = text.lines().map(str::split_whitespace);
            let mut line = lines.find(|line| line.clone().next() == Some(key));
            line.as_mut().and_then(|line| line.nth(1)?.parse().ok()).unwrap_or(0)
        };
        let descriptors = fs::read_dir(format!("/proc/{containerd}/fd"));
        Self {
            containerd_descriptors: descriptors.map_or(0, Iterator::count),
            kernel_kib: field("/proc/meminfo", "SUnreclaim:") + field("/proc/meminfo", "Percpu:"),
            dying_cgroups: field("/sys/fs/cgroup/cgroup.stat", "nr_dying_descendants"),
        }
    }

    /// Lines of the table: before and after.
    pub(super) fn lines(&self, after: &Self) -> String {
        format!(
            "  containerd's descriptors: {} before, {} after\n  kernel: {} KiB before, {} after\n  \
             dying cgroups: {} before, {} after\n",
            self.containerd_descriptors,
            after.containerd_descriptors,
            self.kernel_kib,
            after.kernel_kib,
            self.dying_cgroups,
            after.dying_cgroups
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_are_of_the_time_and_each_names_own() {
        let sample = |name, at, kib| Sample { name, at: Duration::from_secs(at), kib };
        let samples = [
            sample("nacre-vmm", 0, 1.0),
            sample("nacre-vmm", 1, 9.0),
            sample("nacre-vmm", 2, 3.0),
            sample("nacre-fs", 3, 7.0),
            sample("nacre-vmm", 39, 2.0),
            // The last look may be a moment after the end.
            sample("nacre-vmm", 41, 4.0),
        ];
        let found = quarters(&samples, Duration::from_secs(40));
        let of = |name: &str| found.iter().find(|memory| memory.name == name).unwrap().quarters;
        assert_eq!(of("nacre-vmm"), [Some((3.0, 9.0)), None, None, Some((4.0, 4.0))]);
        assert_eq!(of("nacre-fs"), [Some((7.0, 7.0)), None, None, None]);
        assert_eq!(of("containerd"), [None; 4]);
    }

    #[test]
    fn line_has_median_and_largest() {
        let memory = Memory { name: "nacre-fs".into(), quarters: [Some((2.0, 30.0)), None, None, None] };
        let line = memory.line();
        assert!(line.contains("nacre-fs") && line.contains(" 2 (30)"), "{line}");
    }
}
