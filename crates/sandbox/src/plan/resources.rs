//! Limits of a container, as the size of its VM.

use nacre_protocol::vm::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};

pub(crate) use super::spec::Resources;
use crate::config::VmSettings;

/// Bytes of a MiB.
const MIB: u64 = 1 << 20;

/// The kernel's own default of `cpu.cfs_period_us`.
pub const DEFAULT_PERIOD_US: u64 = 100_000;

/// What the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// CPUs that this process may use.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u32,
}

impl HostLimits {
    /// Asks the kernel.
    pub fn of_this_host() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get());
        let info = rustix::system::sysinfo();
        let bytes = info.totalram.saturating_mul(u64::from(info.mem_unit));
        Self {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            memory_mib: u32::try_from(bytes / MIB).unwrap_or(u32::MAX),
        }
    }
}

/// A limit that the host cannot give.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// More memory than there is.
    #[error(
        "memory limit of {wanted_mib} MiB cannot be given: with the guest's kernel it needs {needed_mib} MiB, \
         and this host has {host_mib} MiB"
    )]
    Memory {
        /// The limit.
        wanted_mib: u64,
        /// With what the guest's kernel needs.
        needed_mib: u64,
        /// What the host has.
        host_mib: u32,
    },
}

/// Size of a VM and the host's limits on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// vCPUs.
    pub vcpus: u8,
    /// Guest memory.
    pub memory_mib: u32,
    /// CPU time, microseconds in each period, where there is a limit.
    pub cpu_max: Option<CpuMax>,
    /// cgroup v1 `cpu.shares`, where it is set.
    pub cpu_shares: Option<u64>,
}

impl Size {
    /// The size for a pod. Its limits are the sum of those that containers have: one without any is not to be held to the
    /// others'. They hold in the guest, and on the host the pod's own cgroup has a limit where all containers do.
    pub(super) fn of_pod(self, settings: &VmSettings) -> Self {
        Self { cpu_max: None, vcpus: self.vcpus.max(settings.default_vcpus.clamp(1, MAX_VCPUS)), ..self }
    }
}

/// CPU bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuMax {
    /// Microseconds of CPU time in a period.
    pub quota_us: u64,
    /// The period.
    pub period_us: u64,
}

/// Sizes the VM: as many vCPUs as the CPU limit can use, rounded up, at most what the host has; the memory
/// limit and what the guest itself needs.
///
/// # Errors
/// [`ResourceError::Memory`] for more memory than the host has.
pub(super) fn size(
    resources: &Resources,
    settings: &VmSettings,
    host: HostLimits,
) -> Result<Size, ResourceError> {
    let cpu_max = cpu_max(resources);
    let vcpus = match cpu_max {
        Some(max) => max.quota_us.div_ceil(max.period_us),
        None => u64::from(settings.default_vcpus),
    };
    let most = host.cpus.clamp(1, u32::from(MAX_VCPUS));
    let vcpus = vcpus.clamp(1, u64::from(most));
    Ok(Size {
        vcpus: u8::try_from(vcpus).unwrap_or(MAX_VCPUS),
        memory_mib: memory_mib(resources, settings, host)?,
        cpu_max,
        cpu_shares: resources.cpu.shares.filter(|shares| *shares > 0),
    })
}

/// The CPU bandwidth limit, where there is one.
pub(crate) fn cpu_max(resources: &Resources) -> Option<CpuMax> {
    let quota_us =
        resources.cpu.quota.and_then(|quota| u64::try_from(quota).ok()).filter(|quota| *quota > 0)?;
    let period_us = resources.cpu.period.filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD_US);
    Some(CpuMax { quota_us, period_us })
}

fn memory_mib(resources: &Resources, settings: &VmSettings, host: HostLimits) -> Result<u32, ResourceError> {
    let limit = resources.memory.limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0);
    let Some(limit) = limit else {
        let most = host.memory_mib.clamp(MIN_MEMORY_MIB, MAX_MEMORY_MIB);
        return Ok(settings.default_memory_mib.clamp(MIN_MEMORY_MIB, most));
    };
    let wanted_mib = limit.div_ceil(MIB);
    let needed_mib =
        wanted_mib.saturating_add(u64::from(settings.guest_overhead_mib)).max(MIN_MEMORY_MIB.into());
    let most = host.memory_mib.min(MAX_MEMORY_MIB);
    match u32::try_from(needed_mib) {
        Ok(needed) if needed <= most => Ok(needed),
        _ => Err(ResourceError::Memory { wanted_mib, needed_mib, host_mib: host.memory_mib }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::{Cpu, Memory};
    use super::*;
    use proptest::prelude::*;

    const HOST: HostLimits = HostLimits { cpus: 4, memory_mib: 8192 };

    fn wish(memory: Option<i64>, quota: Option<i64>, period: Option<u64>) -> Resources {
        Resources { memory: Memory { limit: memory }, cpu: Cpu { shares: None, quota, period } }
    }

    fn sized(resources: &Resources) -> Size {
        size(resources, &VmSettings::default(), HOST).unwrap()
    }

    #[test]
    fn no_limits_give_the_defaults() {
        let size = sized(&Resources::default());
        assert_eq!((size.vcpus, size.memory_mib, size.cpu_max), (1, 512, None));
    }

    #[test]
    fn cpu_limit_is_rounded_up_to_vcpus() {
        assert_eq!(sized(&wish(None, Some(150_000), Some(100_000))).vcpus, 2);
        assert_eq!(sized(&wish(None, Some(100_000), None)).vcpus, 1);
        assert_eq!(sized(&wish(None, Some(-1), Some(100_000))).vcpus, 1);
    }

    #[test]
    fn vcpus_are_never_more_than_the_host_has() {
        assert_eq!(sized(&wish(None, Some(6_400_000), Some(100_000))).vcpus, 4);
    }

    #[test]
    fn memory_limit_leaves_room_for_the_guest_kernel() {
        assert_eq!(sized(&wish(Some(64 << 20), None, None)).memory_mib, 128);
        assert_eq!(sized(&wish(Some((64 << 20) + 1), None, None)).memory_mib, 129);
    }

    #[test]
    fn minus_one_is_no_memory_limit() {
        assert_eq!(sized(&wish(Some(-1), None, None)).memory_mib, 512);
    }

    #[test]
    fn memory_that_the_host_has_not_is_an_error_with_both_figures() {
        let error = size(&wish(Some(8192 << 20), None, None), &VmSettings::default(), HOST).unwrap_err();
        assert!(error.to_string().contains("needs 8256 MiB, and this host has 8192 MiB"), "{error}");
    }

    proptest! {
        #[test]
        fn size_is_always_one_that_the_vmm_takes(
            memory: Option<i64>, quota: Option<i64>, period: Option<u64>, cpus: u32, memory_mib in 48u32..,
        ) {
            let host = HostLimits { cpus, memory_mib };
            if let Ok(size) = size(&wish(memory, quota, period), &VmSettings::default(), host) {
                prop_assert!((1..=MAX_VCPUS).contains(&size.vcpus));
                prop_assert!((MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&size.memory_mib));
                prop_assert!(size.memory_mib <= memory_mib);
            }
        }
    }
}
