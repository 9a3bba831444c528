//! Is /dev/kvm of use? Measured, not guessed: a short loop in ring 0 is timed.
//!
//! A software back-end answers every KVM ioctl and yet interprets ring 0 at about a million instructions a second: Linux
//! does not boot on it in useful time. Hardware runs over 10^9, and even KVM inside an emulated machine some 10^8.
//! `nacre check` tells the user, and `cargo xtask` decides by it where its commands run.

mod sys;

use std::fmt;
use std::time::{Duration, Instant};

pub use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuExit;

use sys::GuestMemory;

/// Below this many instructions a second, ring 0 is interpreted.
const HARDWARE: f64 = 10.0e6;

/// Turns of the loop, two instructions each: some 15 ms where ring 0 is interpreted, microseconds in hardware.
const TURNS: u16 = 10_000;

/// The best run counts, since the first one pays for page faults.
const RUNS: usize = 3;

/// A measurement that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no KVM, or it may not be used.
    #[error("/dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    /// The test VM could not be made or run.
    #[error("a test VM failed")]
    Vm(#[from] kvm_ioctls::Error),
    /// No page for its memory.
    #[error("no memory for a test VM")]
    Memory(#[source] nix::Error),
    /// It ended otherwise than by its halt.
    #[error("a test VM ended with {0} instead of a halt")]
    Exit(String),
}

/// How fast ring 0 runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ring0 {
    instructions_per_s: f64,
}

impl Ring0 {
    /// Opens /dev/kvm and measures it.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub fn measure() -> Result<Self, ProbeError> {
        Self::measure_on(&Kvm::new().map_err(ProbeError::Open)?)
    }

    /// Measures a /dev/kvm that is open.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub fn measure_on(kvm: &Kvm) -> Result<Self, ProbeError> {
        Ok(Self::of(time_loop(kvm)?))
    }

    /// The speed at which the test loop takes this long.
    pub fn of(time: Duration) -> Self {
        Self { instructions_per_s: f64::from(TURNS) * 2.0 / time.as_secs_f64().max(1e-9) }
    }

    /// Whether the processor runs it, and not a program.
    pub fn is_hardware(self) -> bool {
        self.instructions_per_s >= HARDWARE
    }
}

impl fmt::Display for Ring0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} million instructions a second", self.instructions_per_s / 1e6)
    }
}

/// Runs a loop of real-mode code in a VM and tells how long it took, from the first instruction to the halt.
fn time_loop(kvm: &Kvm) -> Result<Duration, ProbeError> {
    // mov cx, TURNS; again: dec cx; jnz again; hlt
    let [low, high] = TURNS.to_le_bytes();
    let code = [0xb9, low, high, 0x49, 0x75, 0xfd, 0xf4];
    // Before the VM, and so dropped after it.
    let memory = GuestMemory::page_with(&code).map_err(ProbeError::Memory)?;
    let vm = kvm.create_vm()?;
    memory.attach(&vm)?;
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let mut regs = vcpu.get_regs()?;
        regs.rip = sys::CODE;
        regs.rflags = 2;
        vcpu.set_regs(&regs)?;
        let begin = Instant::now();
        match vcpu.run()? {
            VcpuExit::Hlt => best = best.min(begin.elapsed()),
            other => return Err(ProbeError::Exit(format!("{other:?}"))),
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreted_ring_0_is_told_from_hardware() {
        let (fast, slow) = (Ring0::of(Duration::from_micros(20)), Ring0::of(Duration::from_millis(16)));
        assert!(fast.is_hardware() && !slow.is_hardware());
        assert_eq!(slow.to_string(), "1.2 million instructions a second");
        assert!(Ring0::of(Duration::ZERO).is_hardware());
    }

    #[test]
    fn loop_runs_to_its_halt_where_kvm_is_there() {
        let Ok(kvm) = Kvm::new() else {
            eprintln!("no usable /dev/kvm here: nothing to time");
            return;
        };
        assert!(Ring0::measure_on(&kvm).unwrap().instructions_per_s > 0.0);
    }
}
