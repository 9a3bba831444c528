//! Is /dev/kvm of use? Measured, not guessed: a short ring-0 loop is timed.
//!
//! A software back-end answers every KVM ioctl and yet interprets ring 0 at about a million instructions a
//! second. The slowest hardware, and even KVM inside an emulated machine, is more than ten times faster.

mod sys;

use std::time::Duration;

/// Turns of the loop; two instructions each.
const TURNS: u32 = 200_000;

/// Below this many instructions a second, ring 0 is interpreted.
const HARDWARE_INSTRUCTIONS_PER_S: f64 = 10e6;

/// What the measurement says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kvm {
    /// Ring 0 runs at the processor's speed.
    Hardware,
    /// Ring 0 is interpreted, at this many million instructions a second.
    Interpreted(f64),
    /// There is no KVM, or it may not be used.
    Absent(String),
}

impl std::fmt::Display for Kvm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hardware => f.write_str("KVM runs ring 0 in hardware"),
            Self::Interpreted(speed) => {
                write!(f, "KVM interprets ring 0 ({speed:.1} million instructions/s)")
            }
            Self::Absent(why) => write!(f, "no KVM ({why})"),
        }
    }
}

/// Measures /dev/kvm.
pub(crate) fn measure() -> Kvm {
    match sys::time_loop(TURNS) {
        Ok(time) => judge(time),
        Err(error) => Kvm::Absent(error.to_string()),
    }
}

fn judge(time: Duration) -> Kvm {
    let per_second = f64::from(TURNS) * 2.0 / time.as_secs_f64().max(1e-9);
    if per_second >= HARDWARE_INSTRUCTIONS_PER_S { Kvm::Hardware } else { Kvm::Interpreted(per_second / 1e6) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreted_ring_0_is_told_from_hardware() {
        assert_eq!(judge(Duration::from_millis(1)), Kvm::Hardware);
        assert_eq!(judge(Duration::from_millis(333)), Kvm::Interpreted(0.4 / 0.333));
    }
}
