//! What the guest tells of itself.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Facts for the reply to Hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `uname -r`.
    pub kernel_release: String,
    /// Memory that the kernel manages.
    pub memory_total_bytes: u64,
    /// CPUs that run.
    pub cpus_online: u32,
}

impl Facts {
    /// Asks the kernel.
    pub fn gather() -> Self {
        let info = rustix::system::sysinfo();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            memory_total_bytes: (info.totalram as u64).saturating_mul(u64::from(info.mem_unit)),
            cpus_online: u32::try_from(cpus).unwrap_or(u32::MAX),
        }
    }
}

/// CLOCK_BOOTTIME in microseconds.
pub fn boottime_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    Duration::try_from(now).map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
}
