//! What only an emulated processor does: faults of the machine that look like a runtime's.
//!
//! The lab's emulator now and then mixes up the state of a guest with that of the machine that runs it (`docs/testing.md`). Either
//! the machine's kernel has an exception where none can be, or the guest goes on at an address in the text of the machine's own KVM,
//! which it does not have, and never comes further.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where tracefs belongs.
const TRACING: &str = "/sys/kernel/tracing";

/// TAINT_DIE in /proc/sys/kernel/tainted: the kernel has had an Oops.
const DIED: u64 = 1 << 7;

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
        if trace.is_some_and(|trace| trace.lines().any(|line| !line.starts_with('#'))) {
            faults.push("a guest ran at an address of the machine's own KVM".to_owned());
        }
        faults
    }
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

/// Of `kvm_exit`: a guest's instruction in one of KVM's modules (proc_modules(5)).
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
    (!ranges.is_empty()).then(|| ranges.join(" || "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_kvm_is_what_no_guest_executes() {
        let modules = "kvm_amd 4096 0 - Live 0xffffffffc03c4000 (E)\nkvm 8192 1 kvm_amd, Live 0xffffffffc0213000 (E)\n\
                       tun 4096 0 - Live 0xffffffffc0100000\n";
        assert_eq!(
            filter(modules).as_deref(),
            Some(
                "(guest_rip >= 0xffffffffc03c4000 && guest_rip < 0xffffffffc03c5000) || \
                 (guest_rip >= 0xffffffffc0213000 && guest_rip < 0xffffffffc0215000)"
            )
        );
        assert_eq!(filter("kvm 8192 0 - Live 0x0000000000000000\n"), None);
        assert_eq!(filter(""), None);
    }
}
