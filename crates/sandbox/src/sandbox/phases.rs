//! Milliseconds of each phase of a container's life, for whoever asks where the time went.

use std::time::{Duration, Instant};

use nacre_protocol::task::Phases;

use crate::agent::CreateTimings;
use crate::machine::BootTimes;

/// Moments of a life, as far as it has come.
#[derive(Debug, Clone)]
pub(super) struct Times {
    pub(super) requested: Instant,
    pub(super) boot: BootTimes,
    pub(super) create: CreateTimings,
    pub(super) created: Instant,
    /// What the agent measured of the start.
    pub(super) start_us: u64,
    pub(super) start_requested: Option<Instant>,
    pub(super) started: Option<Instant>,
    pub(super) ended: Option<Instant>,
}

impl Times {
    /// The phases one after the other, on the host's clock. Where only the guest knows the border between two, its
    /// word is taken within what the host has measured.
    pub(super) fn phases(&self, down: Instant) -> Phases {
        let boot = &self.boot;
        let guest = boot.ready - boot.running;
        // Not the kernel's part: the guest's clock begins some time after the guest.
        let agent = Duration::from_micros(boot.greeting.agent_us).min(guest);
        let create = self.created - boot.ready;
        let rootfs = Duration::from_micros(self.create.rootfs_us).min(create);
        let started = self.started.unwrap_or(self.created);
        let start = started.saturating_duration_since(self.start_requested.unwrap_or(started));
        let ended = self.ended.unwrap_or(started).max(started);
        Phases {
            plan: millis(boot.vmm_spawned - self.requested),
            vm_start: millis(boot.running - boot.vmm_spawned),
            kernel: millis(guest - agent),
            agent: millis(agent),
            rootfs: millis(rootfs),
            container: millis(create - rootfs + start),
            create_in_guest: millis(
                Duration::from_micros(self.create.create_us.saturating_add(self.start_us))
                    .min(create + start),
            ),
            run: millis(ended - started),
            exit: millis(down.saturating_duration_since(ended)),
        }
    }
}

/// With microseconds after the point.
fn millis(duration: Duration) -> f64 {
    // A double holds the microseconds of 285 years.
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Greeting;

    fn at(zero: Instant, millis: u64) -> Instant {
        zero + Duration::from_millis(millis)
    }

    fn times(zero: Instant, agent_us: u64) -> Times {
        Times {
            requested: zero,
            boot: BootTimes {
                vmm_spawned: at(zero, 2),
                running: at(zero, 12),
                ready: at(zero, 102),
                start: nacre_protocol::control::StartTimings::default(),
                greeting: Greeting { kernel_release: String::new(), agent_us },
            },
            create: CreateTimings { rootfs_us: 3_000, create_us: 9_000 },
            created: at(zero, 112),
            start_us: 500,
            start_requested: Some(at(zero, 113)),
            started: Some(at(zero, 114)),
            ended: Some(at(zero, 200)),
        }
    }

    #[test]
    fn phases_follow_one_another() {
        let zero = Instant::now();
        let phases = times(zero, 10_000).phases(at(zero, 210));
        let expected = Phases {
            plan: 2.0,
            vm_start: 10.0,
            kernel: 80.0,
            agent: 10.0,
            rootfs: 3.0,
            container: 8.0,
            create_in_guest: 9.5,
            run: 86.0,
            exit: 10.0,
        };
        assert_eq!(phases, expected);
    }

    #[test]
    fn h12_a_guest_that_lies_about_time_stays_within_what_was_measured() {
        let zero = Instant::now();
        let mut times = times(zero, u64::MAX);
        times.create.rootfs_us = u64::MAX;
        times.create.create_us = u64::MAX;
        let phases = times.phases(at(zero, 210));
        assert_eq!((phases.kernel, phases.agent, phases.rootfs), (0.0, 90.0, 10.0));
        assert_eq!(phases.create_in_guest, 11.0);
    }

    #[test]
    fn container_that_never_started_has_no_run() {
        let zero = Instant::now();
        let times = Times { start_requested: None, started: None, ended: None, ..times(zero, 0) };
        assert_eq!(times.phases(at(zero, 120)).run, 0.0);
    }
}
