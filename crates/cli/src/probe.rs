//! What `nacre check` looks at, each with what to do about it.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use kvm_ioctls::Cap;
use nacre_kvm_probe::{Kvm, ProbeError, Ring0};
use nacre_protocol::assets::{self, ASSETS_ENV};
use serde::Serialize;

/// How a point stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Ok,
    /// nacre works, with the limit that the text tells.
    Warning,
    /// nacre cannot run a VM.
    Bad,
}

/// One thing looked at.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    pub(crate) what: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) found: String,
    /// What to do about it; empty where nothing is to be done.
    pub(crate) advice: String,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, found: found.into(), advice: String::new() }
    }

    fn warning(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Warning, found: found.into(), advice: advice.into() }
    }

    fn bad(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Bad, found: found.into(), advice: advice.into() }
    }
}

/// Bytes of /proc/cpuinfo that hold the first processor's flags.
const CPUINFO_BYTES: usize = 8192;

/// What is told of a KVM that is of no use.
const EMULATED: &str = "this KVM interprets kernel code (a software back-end): Linux guests do not boot in useful time; \
                        use a machine with hardware KVM, or the lab: cargo xtask lab -- nacre check";

/// Looks at everything.
pub(crate) fn look(root: &Path) -> Vec<Finding> {
    let mut out = kvm();
    out.push(cgroup());
    out.push(tun());
    out.extend(["overlay", "erofs"].map(filesystem));
    out.push(landlock());
    out.push(memory());
    out.push(assets());
    out.push(directory(root));
    out
}

fn kvm() -> Vec<Finding> {
    let path = Path::new("/dev/kvm");
    if !path.exists() {
        let advice = if cpu_has_virtualization() {
            "load the module: modprobe kvm_intel or kvm_amd; in a VM, ask for nested virtualization"
        } else {
            "this processor offers no VMX or SVM here: switch it on in the firmware, or use a machine (or an \
             instance type) with nested virtualization"
        };
        return vec![Finding::bad("/dev/kvm", "not there", advice)];
    }
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) if error.errno() == nix::errno::Errno::EACCES as i32 => {
            let advice = "run as root, or join the group of /dev/kvm: usermod -aG kvm $USER";
            return vec![Finding::bad("/dev/kvm", "no permission", advice)];
        }
        Err(error) => {
            return vec![Finding::bad("/dev/kvm", format!("cannot be opened: {error}"), "see dmesg")];
        }
    };
    let mut out = vec![Finding::ok("/dev/kvm", format!("API version {}", kvm.get_api_version()))];
    let missing: Vec<_> =
        needed_capabilities().into_iter().filter(|&(cap, _)| !kvm.check_extension(cap)).collect();
    if !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|(_, name)| *name).collect();
        out.push(Finding::bad(
            "KVM features",
            format!("missing: {}", names.join(", ")),
            "use Linux 5.10 or later",
        ));
    }
    out.push(ring0(&kvm));
    out
}

fn needed_capabilities() -> [(Cap, &'static str); 6] {
    [
        (Cap::Irqchip, "in-kernel interrupt controller"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::Irqfd, "irqfd"),
        (Cap::UserMemory, "user memory"),
        (Cap::SetTssAddr, "TSS address"),
        (Cap::ImmediateExit, "immediate exit"),
    ]
}

fn ring0(kvm: &Kvm) -> Finding {
    judge_ring0(Ring0::measure_on(kvm))
}

/// What the speed of ring 0 means.
fn judge_ring0(measured: Result<Ring0, ProbeError>) -> Finding {
    const WHAT: &str = "ring 0";
    match measured {
        Ok(speed) if speed.is_hardware() => Finding::ok(WHAT, format!("{speed}: run by the processor")),
        Ok(speed) => Finding::bad(WHAT, format!("{speed}: interpreted"), EMULATED),
        Err(error) => {
            let found = crate::output::error_line(&anyhow::Error::new(error));
            Finding::bad(WHAT, found, "see dmesg for what KVM says")
        }
    }
}

/// Why no container can be run here although there is a KVM. Hardware is not timed: a processor that offers VMX or SVM
/// runs ring 0 itself. Whatever else is wrong is told by those who need it.
pub(crate) fn emulation() -> Option<&'static str> {
    if cpu_has_virtualization() {
        return None;
    }
    let kvm = Kvm::new().ok()?;
    let finding = ring0(&kvm);
    (finding.advice == EMULATED).then_some(EMULATED)
}

fn cpu_has_virtualization() -> bool {
    // The first processor's paragraph is enough, and is all that `run` waits for.
    let mut start = Vec::with_capacity(CPUINFO_BYTES);
    let read = fs::File::open("/proc/cpuinfo").and_then(|file| {
        let mut limited = file.take(CPUINFO_BYTES as u64);
        limited.read_to_end(&mut start)
    });
    read.is_ok() && offers_virtualization(&String::from_utf8_lossy(&start))
}

fn offers_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .any(|line| line.starts_with("flags") && line.split(' ').any(|flag| matches!(flag, "vmx" | "svm")))
}

fn cgroup() -> Finding {
    const WHAT: &str = "cgroups";
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let hybrid = Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists();
    match (unified, hybrid, Path::new("/sys/fs/cgroup").exists()) {
        (true, _, _) => Finding::ok(WHAT, "version 2"),
        (_, true, _) => Finding::ok(WHAT, "hybrid: version 1 limits the VMs' processes"),
        (_, _, true) if Path::new("/sys/fs/cgroup/memory").exists() => Finding::ok(WHAT, "version 1"),
        _ => Finding::warning(
            WHAT,
            "not mounted",
            "limits of the VMs' own processes do not hold: mount cgroup2",
        ),
    }
}

fn tun() -> Finding {
    const WHAT: &str = "/dev/net/tun";
    match fs::File::options().read(true).write(true).open(WHAT) {
        Ok(_) => Finding::ok(WHAT, "usable"),
        Err(error) => Finding::warning(
            WHAT,
            error.to_string(),
            "only needed for containers with a network: modprobe tun",
        ),
    }
}

fn filesystem(name: &'static str) -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let there = known.lines().any(|line| line.split_whitespace().last() == Some(name));
    let found = if there { "in the host kernel" } else { "not in the host kernel" };
    // The guest kernel brings both: the host's matter to containerd's snapshotters alone.
    Finding::ok(name, format!("{found} (only containerd's snapshotters need it)"))
}

fn landlock() -> Finding {
    let there = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default().contains("landlock");
    if there {
        return Finding::ok("Landlock", "on");
    }
    Finding::warning("Landlock", "not seen", "the VMM is jailed without it too; one wall less")
}

fn memory() -> Finding {
    const WHAT: &str = "memory";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let mib =
        kib.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |kib| kib >> 10);
    if mib >= 256 {
        return Finding::ok(WHAT, format!("{mib} MiB available"));
    }
    Finding::warning(WHAT, format!("{mib} MiB available"), "a container needs about 64 MiB and what it uses")
}

fn assets() -> Finding {
    const WHAT: &str = "guest files";
    let first = std::env::var_os(ASSETS_ENV).map(PathBuf::from);
    let dirs = assets::dirs(first, std::env::current_exe().ok().as_deref());
    let whole = |dir: &PathBuf| ["vmlinux", "initramfs.cpio"].iter().all(|name| dir.join(name).is_file());
    match dirs.iter().find(|dir| whole(dir)) {
        Some(dir) => Finding::ok(WHAT, format!("in {}", dir.display())),
        None => Finding::bad(
            WHAT,
            "no kernel and initramfs found",
            "build them: cargo xtask guest; or set NACRE_ASSETS",
        ),
    }
}

fn directory(root: &Path) -> Finding {
    const WHAT: &str = "data directory";
    match nix::sys::statvfs::statvfs(root) {
        Ok(stat) => {
            let free = (stat.blocks_available() * stat.fragment_size()) >> 20;
            let found = format!("{}, {free} MiB free", root.display());
            if free >= 512 {
                return Finding::ok(WHAT, found);
            }
            Finding::warning(WHAT, found, "images need space: free some, or choose another with --root")
        }
        Err(_) => Finding::ok(WHAT, format!("{}, made on first use", root.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_problem_comes_with_advice() {
        for finding in look(Path::new("/nonexistent")) {
            assert!(finding.verdict == Verdict::Ok || !finding.advice.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn interpreted_ring0_is_a_problem_that_names_a_way_out() {
        // 20 000 instructions in 16 ms: 1.25 million a second.
        let finding = judge_ring0(Ok(Ring0::of(Duration::from_millis(16))));
        assert_eq!(finding.verdict, Verdict::Bad);
        assert_eq!(finding.found, "1.2 million instructions a second: interpreted");
        assert!(finding.advice.contains("hardware KVM") && finding.advice.contains("cargo xtask lab"));
    }

    #[test]
    fn ring0_of_hardware_and_of_a_whole_emulated_machine_is_fine() {
        assert_eq!(judge_ring0(Ok(Ring0::of(Duration::from_micros(9)))).verdict, Verdict::Ok);
        assert_eq!(judge_ring0(Ok(Ring0::of(Duration::from_micros(200)))).verdict, Verdict::Ok);
    }

    #[test]
    fn kvm_that_runs_no_vm_is_a_problem() {
        let finding = judge_ring0(Err(ProbeError::Exit("a shutdown".into())));
        assert_eq!(finding.verdict, Verdict::Bad);
        assert!(finding.found.contains("a test VM ended"), "{finding:?}");
    }

    #[test]
    fn virtualization_is_seen_in_the_flags_alone() {
        assert!(offers_virtualization("model name : x\nflags\t\t: fpu svm sse\n"));
        assert!(!offers_virtualization("model name : svm\nflags\t\t: fpu svmx sse\nbugs : svm\n"));
    }

    #[test]
    fn emulation_is_what_the_whole_look_finds() {
        let findings = look(Path::new("/nonexistent"));
        let interpreted = findings.iter().any(|finding| finding.advice == EMULATED);
        assert_eq!(emulation().is_some(), interpreted, "{findings:?}");
    }
}
