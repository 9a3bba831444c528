//! What only an emulated processor does: faults of the machine that look like a runtime's.
//!
//! The lab's emulator now and then mixes up the state of a guest with that of the machine that runs it (`docs/testing.md`). Either
//! the machine's kernel has an exception where none can be, or the guest goes on at an address in the text of the machine's own KVM,
//! which it does not have, and never comes further or has a triple fault there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where tracefs belongs.
const TRACING: &str = "/sys/kernel/tracing";

/// TAINT_DIE in /proc/sys/kernel/tainted: the kernel has had an Oops.
const DIED: u64 = 1 << 7;

/// SVM_EXIT_SHUTDOWN (AMD64 Architecture Programmer's Manual, volume 2, appendix C).
const SHUTDOWN: u32 = 0x7f;

/// A look at every exit of every guest from now on.
pub(crate) struct Watch {
    /// An instance of tracefs; none where the machine has no tracing.
    instance: Option<PathBuf>,
}

impl Watch {
    pub(crate) fn begin() -> Self {
        Self { instance: begin() }
    }

    /// What has happened, for people; nothing on any real processor.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let tainted = fs::read_to_string("/proc/sys/kernel/tainted").unwrap_or_default();
        if tainted.trim().parse().is_ok_and(|tainted: u64| tainted & DIED != 0) {
            faults.push("the machine's own kernel had a fault".to_owned());
        }
        let trace = self.instance.as_ref().and_then(|dir| fs::read_to_string(dir.join("trace")).ok());
        faults.extend(strange_exits(&trace.unwrap_or_default()));
        faults
    }
}

/// Of the exits that the filter lets through, those that no guest of ours has on a real processor. Every guest ends itself by a triple fault
/// (reboot=t), all of them at the same instruction.
fn strange_exits(trace: &str) -> Vec<String> {
    let (mut elsewhere, mut ends) = (0_u32, BTreeMap::<&str, u32>::new());
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        match line.split_once(" reason shutdown rip ").and_then(|(_, rest)| rest.split(' ').next()) {
            Some(rip) => *ends.entry(rip).or_default() += 1,
            None => elsewhere += 1,
        }
    }
    let mut strange = Vec::new();
    if elsewhere > 0 {
        strange.push("a guest ran at an address of the machine's own KVM".to_owned());
    }
    let usual = ends.iter().max_by_key(|(_, count)| **count).map(|(rip, _)| *rip);
    for (rip, _) in ends.iter().filter(|(rip, _)| Some(**rip) != usual) {
        strange.push(format!("a guest had a triple fault at {rip}, where none ends itself"));
    }
    strange
}

fn begin() -> Option<PathBuf> {
    let filter = filter(&fs::read_to_string("/proc/modules").ok()?)?;
    if !Path::new(TRACING).join("events").exists() {
        Command::new("mount").args(["-t", "tracefs", "tracefs", TRACING]).status().ok()?;
    }
    let instance = Path::new(TRACING).join("instances/nacre");
    match fs::create_dir(&instance) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return None,
        _ => {}
    }
    let event = instance.join("events/kvm/kvm_exit");
    fs::write(event.join("filter"), filter).ok()?;
    fs::write(event.join("enable"), "1").ok()?;
    Some(instance)
}

/// Of `kvm_exit`: a guest's instruction in one of KVM's modules (proc_modules(5)), or a triple fault.
fn filter(modules: &str) -> Option<String> {
    let ranges = modules.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, size) = (words.next()?, words.next()?.parse::<u64>().ok()?);
        let begin = u64::from_str_radix(words.nth(3)?.strip_prefix("0x")?, 16).ok()?;
        let end = begin.checked_add(size)?;
        // Without the right to see addresses they are all zero.
        (name.starts_with("kvm") && begin > 0)
            .then(|| format!("(guest_rip >= {begin:#x} && guest_rip < {end:#x})"))
    });
    let ranges: Vec<String> = ranges.collect();
    (!ranges.is_empty()).then(|| format!("{} || exit_reason == {SHUTDOWN}", ranges.join(" || ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_that_only_an_emulator_makes_are_told() {
        let end = |rip: &str| {
            format!(" vcpu0-7 [0] d..1. 1.5: kvm_exit: vcpu 0 reason shutdown rip {rip} info1 0x0\n")
        };
        let usual = format!("# tracer: nop\n{0}{0}{0}", end("0xffffffff8102aec9"));
        assert_eq!(strange_exits(&usual), Vec::<String>::new());
        let odd = format!("{usual}{}", end("0xffffffff81200000"));
        assert!(
            strange_exits(&odd)[0].contains("triple fault at 0xffffffff81200000"),
            "{:?}",
            strange_exits(&odd)
        );
        let npf = " vcpu0-7 [0] d..1. 1.5: kvm_exit: vcpu 0 reason npf rip 0xffffffffc03d36b0 info1 0x0\n";
        assert!(strange_exits(&format!("{usual}{npf}{npf}"))[0].contains("own KVM"));
        assert_eq!(strange_exits(""), Vec::<String>::new());
    }

    #[test]
    fn text_of_kvm_is_what_no_guest_executes() {
        let modules = "kvm_amd 4096 0 - Live 0xffffffffc03c4000 (E)\nkvm 8192 1 kvm_amd, Live 0xffffffffc0213000 (E)\n\
                       tun 4096 0 - Live 0xffffffffc0100000\n";
        assert_eq!(
            filter(modules).as_deref(),
            Some(
                "(guest_rip >= 0xffffffffc03c4000 && guest_rip < 0xffffffffc03c5000) || \
                 (guest_rip >= 0xffffffffc0213000 && guest_rip < 0xffffffffc0215000) || exit_reason == 127"
            )
        );
        assert_eq!(filter("kvm 8192 0 - Live 0x0000000000000000\n"), None);
        assert_eq!(filter(""), None);
    }
}
