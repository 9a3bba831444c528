//! OCI `linux.resources` as lines for cgroup v2 files.
//!
//! The specification is written for cgroup v1; the conversions are runc's. An absent value, and a 0 where v1
//! means "not set" by it, writes nothing; a negative one means no limit.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources, LinuxThrottleDevice,
};

use super::devices::{Rule, rules};

const MAX_UNIFIED: usize = 256;
const MAX_DEVICES: usize = 1024;

/// Resources that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum InvalidResources {
    /// A number outside what the kernel or the specification takes.
    #[error("{name} {value} is not in {allowed}")]
    Range {
        /// Which value.
        name: &'static str,
        /// What was asked.
        value: i128,
        /// What is possible.
        allowed: &'static str,
    },
    /// A list of CPUs or memory nodes that is none.
    #[error("{0} {1:?} is not a list of numbers and ranges")]
    List(&'static str, String),
    /// Swap is counted on top of memory.
    #[error("memory swap {swap} needs a memory limit that is not above it")]
    Swap {
        /// What was asked.
        swap: i64,
    },
    /// A limit that cgroup v2 does not have.
    #[error("{0} does not exist in cgroup v2")]
    NotInV2(&'static str),
    /// A huge page size that is none.
    #[error("huge page size {0:?} is not a number with KB, MB or GB")]
    PageSize(String),
    /// An entry of `unified` that is no limit.
    #[error("unified entry {0:?} is not a controller's file, or its value is not one line")]
    Unified(String),
    /// A device rule that cannot be.
    #[error("device rule: {0}")]
    DeviceRule(&'static str),
    /// More entries than any container needs.
    #[error("{0} has too many entries")]
    TooMany(&'static str),
}

/// Limits of a cgroup.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Resources {
    /// File and line, in the order to be written.
    pub(super) writes: Vec<(String, String)>,
    pub(super) io_weight: Option<IoWeight>,
    pub(super) devices: Vec<Rule>,
    /// The memory limit, where it must not be below the present use.
    pub(super) checked_memory_limit: Option<u64>,
}

/// Lines of the two files that can hold I/O weights.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct IoWeight {
    pub(super) bfq: Vec<String>,
    pub(super) io: Vec<String>,
}

impl Resources {
    /// Lets the container use a disk of the guest's, with this device number.
    pub(crate) fn allow_disk(&mut self, number: (u32, u32), read_only: bool) {
        self.devices.push(super::devices::disk(number, read_only));
    }

    /// Converts and checks.
    ///
    /// # Errors
    /// [`InvalidResources`], naming the value.
    pub(crate) fn from_oci(oci: &LinuxResources) -> Result<Self, InvalidResources> {
        let mut resources = Self::default();
        if let Some(cpu) = oci.cpu() {
            resources.cpu(cpu)?;
        }
        if let Some(memory) = oci.memory() {
            resources.memory(memory)?;
        }
        if let Some(pids) = oci.pids() {
            resources.pids(pids);
        }
        if let Some(block_io) = oci.block_io() {
            resources.block_io(block_io)?;
        }
        resources.huge_pages(oci.hugepage_limits().as_deref().unwrap_or_default())?;
        // Last: it may say again what another field has said.
        let mut unified: Vec<_> = oci.unified().iter().flatten().collect();
        unified.sort();
        resources.unified(&unified)?;
        resources.devices = rules(oci.devices().as_deref().unwrap_or_default())?;
        Ok(resources)
    }

    /// Controllers of the files to be written.
    pub(super) fn controllers(&self) -> impl Iterator<Item = &str> {
        self.writes.iter().filter_map(|(file, _)| file.split('.').next())
    }

    fn write(&mut self, file: &str, line: impl Into<String>) {
        self.writes.push((file.to_owned(), line.into()));
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<(), InvalidResources> {
        if cpu.realtime_runtime().is_some_and(|runtime| runtime != 0)
            || cpu.realtime_period().is_some_and(|period| period != 0)
        {
            return Err(InvalidResources::NotInV2("a realtime CPU limit"));
        }
        if let Some(shares @ 1..) = cpu.shares() {
            self.write("cpu.weight", weight_of_shares(shares).to_string());
        }
        self.cpu_max(cpu)?;
        if let Some(idle) = cpu.idle() {
            range("cpu idle", idle, 0, 1, "0..=1")?;
            self.write("cpu.idle", idle.to_string());
        }
        for (file, name, list) in [("cpuset.cpus", "cpus", cpu.cpus()), ("cpuset.mems", "mems", cpu.mems())] {
            let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else { continue };
            let good = |c: u8| c.is_ascii_digit() || matches!(c, b',' | b'-');
            if list.len() > 1024 || !list.bytes().all(good) {
                return Err(InvalidResources::List(name, list.to_owned()));
            }
            self.write(file, list);
        }
        Ok(())
    }

    fn cpu_max(&mut self, cpu: &LinuxCpu) -> Result<(), InvalidResources> {
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let period = cpu.period().filter(|period| *period != 0);
        if let Some(period) = period {
            range(
                "cpu period",
                i64::try_from(period).unwrap_or(i64::MAX),
                1_000,
                1_000_000,
                "1000..=1000000 µs",
            )?;
        }
        let period = period.map_or(String::new(), |period| format!(" {period}"));
        match quota {
            Some(quota @ 1..) => {
                range("cpu quota", quota, 1_000, i64::MAX / 1000, "1000.. µs")?;
                self.write("cpu.max", format!("{quota}{period}"));
            }
            Some(_) => self.write("cpu.max", format!("max{period}")),
            None if !period.is_empty() => self.write("cpu.max", format!("max{period}")),
            None => {}
        }
        // The kernel wants the burst below the quota, so it is written after it.
        if let Some(burst) = cpu.burst() {
            self.write("cpu.max.burst", burst.to_string());
        }
        Ok(())
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<(), InvalidResources> {
        let limit = memory.limit().filter(|limit| *limit != 0);
        // Swap first: lowering memory may need room there.
        match (memory.swap().filter(|swap| *swap != 0), limit) {
            (None, _) => {}
            (Some(..0), _) => self.write("memory.swap.max", "max"),
            (Some(swap), Some(limit @ 1..)) if swap >= limit => {
                self.write("memory.swap.max", (swap - limit).to_string());
            }
            (Some(swap), _) => return Err(InvalidResources::Swap { swap }),
        }
        if let Some(limit) = limit {
            self.write("memory.max", or_max(limit));
            if memory.check_before_update().unwrap_or(false) {
                self.checked_memory_limit = u64::try_from(limit).ok();
            }
        }
        if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
            self.write("memory.low", or_max(reservation));
        }
        Ok(())
    }

    fn pids(&mut self, pids: &LinuxPids) {
        match pids.limit() {
            0 => {}
            limit => self.write("pids.max", or_max(limit)),
        }
    }

    fn block_io(&mut self, block_io: &LinuxBlockIo) -> Result<(), InvalidResources> {
        let mut weight = IoWeight::default();
        let mut add = |device: String, value: u16| {
            range("block I/O weight", i64::from(value), 10, 1000, "10..=1000")?;
            weight.bfq.push(format!("{device} {value}"));
            weight.io.push(format!("{device} {}", 1 + (u32::from(value) - 10) * 9999 / 990));
            Ok(())
        };
        if let Some(value @ 1..) = block_io.weight() {
            add("default".into(), value)?;
        }
        let devices = block_io.weight_device().as_deref().unwrap_or_default();
        check_count("block I/O weights", devices.len())?;
        for device in devices {
            if let Some(value @ 1..) = device.weight() {
                add(device_number(device.major(), device.minor())?, value)?;
            }
        }
        self.io_weight = (!weight.io.is_empty()).then_some(weight);
        self.throttle("rbps", block_io.throttle_read_bps_device())?;
        self.throttle("wbps", block_io.throttle_write_bps_device())?;
        self.throttle("riops", block_io.throttle_read_iops_device())?;
        self.throttle("wiops", block_io.throttle_write_iops_device())
    }

    fn throttle(
        &mut self,
        key: &str,
        devices: &Option<Vec<LinuxThrottleDevice>>,
    ) -> Result<(), InvalidResources> {
        check_count("block I/O throttles", devices.as_ref().map_or(0, Vec::len))?;
        for device in devices.iter().flatten() {
            let number = device_number(device.major(), device.minor())?;
            let rate = if device.rate() == 0 { "max".into() } else { device.rate().to_string() };
            self.write("io.max", format!("{number} {key}={rate}"));
        }
        Ok(())
    }

    fn huge_pages(&mut self, limits: &[LinuxHugepageLimit]) -> Result<(), InvalidResources> {
        check_count("huge page limits", limits.len())?;
        for limit in limits {
            let size = limit.page_size();
            let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
            if !digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit()))
            {
                return Err(InvalidResources::PageSize(size.clone()));
            }
            self.write(&format!("hugetlb.{size}.max"), or_max(limit.limit()));
        }
        Ok(())
    }

    fn unified(&mut self, entries: &[(&String, &String)]) -> Result<(), InvalidResources> {
        if entries.len() > MAX_UNIFIED {
            return Err(InvalidResources::TooMany("unified"));
        }
        for (file, value) in entries {
            let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_');
            let named =
                file.len() < 256 && file.bytes().all(good) && file.contains('.') && !file.starts_with('.');
            // cgroup.* moves processes and delegates: the agent's business.
            if !named || file.starts_with("cgroup.") || value.len() > 4096 || value.contains(['\n', '\0']) {
                return Err(InvalidResources::Unified((*file).clone()));
            }
            self.write(file, value.as_str());
        }
        Ok(())
    }
}

/// runc's conversion: 2 to 262144 shares onto 1 to 10000, such that the default 1024 becomes the default 100.
fn weight_of_shares(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    match shares {
        2 => return 1,
        262_144 => return 10_000,
        _ => {}
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

fn or_max(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

fn range(
    name: &'static str,
    value: i64,
    least: i64,
    most: i64,
    allowed: &'static str,
) -> Result<(), InvalidResources> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(InvalidResources::Range { name, value: i128::from(value), allowed })
}

fn device_number(major: i64, minor: i64) -> Result<String, InvalidResources> {
    range("device major", major, 0, 4095, "0..=4095")?;
    range("device minor", minor, 0, 1_048_575, "0..=1048575")?;
    Ok(format!("{major}:{minor}"))
}

fn check_count(what: &'static str, count: usize) -> Result<(), InvalidResources> {
    if count > MAX_DEVICES { Err(InvalidResources::TooMany(what)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn writes(json: &str) -> Vec<(String, String)> {
        Resources::from_oci(&serde_json::from_str(json).unwrap()).unwrap().writes
    }

    fn line(json: &str) -> (String, String) {
        let [line] = writes(json).try_into().unwrap();
        line
    }

    fn refused(json: &str) -> bool {
        Resources::from_oci(&serde_json::from_str(json).unwrap()).is_err()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.into(), value.into())
    }

    #[test]
    fn default_shares_become_the_default_weight() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight_of_shares), [1, 1, 100, 10_000, 10_000]);
    }

    #[test]
    fn cpu_quota_and_period_are_one_line() {
        assert_eq!(line(r#"{"cpu":{"quota":50000,"period":100000}}"#), pair("cpu.max", "50000 100000"));
        assert_eq!(line(r#"{"cpu":{"quota":-1}}"#), pair("cpu.max", "max"));
        assert_eq!(line(r#"{"cpu":{"quota":50000}}"#), pair("cpu.max", "50000"));
    }

    #[test]
    fn swap_is_counted_without_memory() {
        let lines = writes(r#"{"memory":{"limit":1000,"swap":1500}}"#);
        assert_eq!(lines, [pair("memory.swap.max", "500"), pair("memory.max", "1000")]);
        let lines = writes(r#"{"memory":{"limit":1000,"swap":1000}}"#);
        assert_eq!(lines[0], pair("memory.swap.max", "0"));
        assert_eq!(line(r#"{"memory":{"swap":-1}}"#), pair("memory.swap.max", "max"));
        assert!(refused(r#"{"memory":{"limit":1000,"swap":999}}"#));
        assert!(refused(r#"{"memory":{"swap":999}}"#));
    }

    #[test]
    fn zero_means_not_set_and_negative_no_limit() {
        assert!(
            writes(r#"{"memory":{"limit":0},"pids":{"limit":0},"cpu":{"shares":0,"quota":0}}"#).is_empty()
        );
        assert_eq!(line(r#"{"pids":{"limit":-1}}"#), pair("pids.max", "max"));
        assert_eq!(line(r#"{"memory":{"limit":-1}}"#), pair("memory.max", "max"));
    }

    #[test]
    fn block_io_weight_has_both_forms() {
        let json = r#"{"blockIO":{"weight":1000,"weightDevice":[{"major":8,"minor":16,"weight":10}]}}"#;
        let weight = Resources::from_oci(&serde_json::from_str(json).unwrap()).unwrap().io_weight.unwrap();
        assert_eq!(weight.io, ["default 10000", "8:16 1"]);
        assert_eq!(weight.bfq, ["default 1000", "8:16 10"]);
    }

    #[test]
    fn throttles_are_lines_of_io_max() {
        let json = r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1048576}]}}"#;
        assert_eq!(line(json), pair("io.max", "8:0 rbps=1048576"));
    }

    #[test]
    fn huge_pages_go_to_the_file_of_their_size() {
        let json = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#;
        assert_eq!(line(json), pair("hugetlb.2MB.max", "4194304"));
        assert!(refused(r#"{"hugepageLimits":[{"pageSize":"../2MB","limit":1}]}"#));
    }

    #[test]
    fn unified_reaches_controller_files_only() {
        assert_eq!(line(r#"{"unified":{"memory.high":"1000"}}"#), pair("memory.high", "1000"));
        for bad in ["cgroup.procs", "../x.y", "memory", ".x"] {
            assert!(refused(&format!(r#"{{"unified":{{"{bad}":"1"}}}}"#)), "{bad}");
        }
        assert!(refused(r#"{"unified":{"memory.high":"1\n2"}}"#));
    }

    #[test]
    fn impossible_values_are_refused() {
        for bad in [
            r#"{"cpu":{"period":999}}"#,
            r#"{"cpu":{"quota":1}}"#,
            r#"{"cpu":{"idle":2}}"#,
            r#"{"cpu":{"cpus":"0;1"}}"#,
            r#"{"cpu":{"realtimeRuntime":1}}"#,
            r#"{"blockIO":{"weight":9}}"#,
        ] {
            assert!(refused(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn weight_stays_in_range_and_grows(a: u64, b: u64) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(weight_of_shares(low) <= weight_of_shares(high));
            prop_assert!((1..=10_000).contains(&weight_of_shares(a)));
        }
    }
}
