//! Memory, CPUs, processes and rlimits.

use serde_json::{Map, Value, json};

use super::SpecError;
use crate::args::RunArgs;

/// Docker's least memory limit: below it a container does not start usefully.
const MIN_MEMORY: i64 = 6 << 20;

/// Period of the CPU bandwidth controller, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// OCI `linux.resources`.
pub(super) fn resources(args: &RunArgs) -> Result<Value, SpecError> {
    let mut out = Map::new();
    out.insert("devices".into(), devices(args.privileged));
    if let Some(text) = &args.memory {
        let bytes = parse_bytes("--memory", text)?;
        if bytes < MIN_MEMORY {
            return Err(SpecError::option("--memory", text, "at least 6m is needed"));
        }
        let have = host_memory_bytes();
        if have.is_some_and(|have| bytes > have) {
            let reason = format!("this machine has {} MiB", have.unwrap_or(0) >> 20);
            return Err(SpecError::option("--memory", text, reason));
        }
        // Docker: memory plus swap is twice the memory; a guest has no swap, so the limit alone counts.
        out.insert("memory".into(), json!({ "limit": bytes }));
    }
    if let Some(text) = &args.cpus {
        out.insert("cpu".into(), json!({ "quota": cpu_quota(text)?, "period": CPU_PERIOD_US }));
    }
    if let Some(limit) = args.pids_limit.filter(|&limit| limit > 0) {
        out.insert("pids".into(), json!({ "limit": limit }));
    }
    Ok(Value::Object(out))
}

/// Device cgroup rules: nothing but what every container has (null, zero, full, random, urandom, tty, ptmx, pts), and mknod
/// of any, as Docker; or the whole guest's where privileged. The console (5:1) is the guest's own, on which a container could
/// forge a kernel panic: a container's /dev/console is a pty.
fn devices(privileged: bool) -> Value {
    if privileged {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" }));
    }
    rules.push(json!({ "allow": true, "type": "c", "major": 136, "access": "rwm" }));
    Value::Array(rules)
}

/// `1.5` -> microseconds of CPU time per period.
fn cpu_quota(text: &str) -> Result<i64, SpecError> {
    let bad = |reason: String| SpecError::option("--cpus", text, reason);
    let count: f64 = text.parse().map_err(|_| bad("it is not a number".into()))?;
    let have = std::thread::available_parallelism().map_or(1, usize::from);
    if !(0.01..=have as f64).contains(&count) {
        return Err(bad(format!("from 0.01 to {have}.00, as there are only {have} CPUs available")));
    }
    Ok((count * CPU_PERIOD_US as f64).round() as i64)
}

/// `512m` -> bytes; suffixes b, k, m, g, t in powers of 1024, any case, with or without a trailing `b`/`ib`.
pub(crate) fn parse_bytes(option: &'static str, text: &str) -> Result<i64, SpecError> {
    let bad = || SpecError::option(option, text, "expected a number with a suffix of b, k, m or g");
    let lower = text.to_ascii_lowercase();
    let split = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, suffix) = lower.split_at(split);
    let shift = match suffix.trim_end_matches('b').trim_end_matches('i') {
        "" if matches!(suffix, "" | "b") => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(bad()),
    };
    let number: f64 = number.parse().map_err(|_| bad())?;
    let bytes = number * (1u64 << shift) as f64;
    // 2^53: beyond it a float no longer counts single bytes, and no machine has that much.
    if !(0.0..9.0e15).contains(&bytes) {
        return Err(bad());
    }
    Ok(bytes as i64)
}

fn host_memory_bytes() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: i64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()?;
    kib.checked_mul(1024)
}

/// Names that `--ulimit` takes, as Docker's (setrlimit(2) without the prefix).
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// OCI `process.rlimits`.
pub(super) fn ulimits(options: &[String]) -> Result<Vec<Value>, SpecError> {
    options.iter().map(|option| ulimit(option)).collect()
}

fn ulimit(option: &str) -> Result<Value, SpecError> {
    let bad = |reason: &str| SpecError::option("--ulimit", option, reason);
    let (name, values) = option.split_once('=').ok_or_else(|| bad("expected NAME=SOFT[:HARD]"))?;
    if !ULIMITS.contains(&name) {
        return Err(bad(&format!("known are {}", ULIMITS.join(", "))));
    }
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        _ => text.parse::<u64>().map_err(|_| bad("a limit is a number, or unlimited")),
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err(bad("the soft limit is above the hard limit"));
    }
    Ok(json!({ "type": format!("RLIMIT_{}", name.to_ascii_uppercase()), "soft": soft, "hard": hard }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn suffixes_are_powers_of_1024() {
        for (text, bytes) in
            [("1", 1), ("1b", 1), ("2k", 2048), ("2kb", 2048), ("1.5m", 3 << 19), ("1GiB", 1 << 30)]
        {
            assert_eq!(parse_bytes("--memory", text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn nonsense_is_no_size() {
        for text in ["", "m", "-1", "1x", "1.2.3", "99999999999t", "nan"] {
            assert!(parse_bytes("--memory", text).is_err(), "{text}");
        }
    }

    #[test]
    fn more_cpus_than_there_are_is_refused() {
        assert!(cpu_quota("4096").unwrap_err().to_string().contains("CPUs available"));
        assert!(cpu_quota("0").is_err() && cpu_quota("NaN").is_err());
        assert_eq!(cpu_quota("0.5").unwrap(), 50_000);
    }

    #[test]
    fn ulimit_soft_above_hard_is_refused() {
        assert!(ulimit("nofile=10:5").is_err());
        assert_eq!(ulimit("nofile=5").unwrap()["hard"], 5);
    }

    proptest! {
        #[test]
        fn any_text_parses_or_not_without_panic(text in ".{0,40}") {
            let _ = parse_bytes("--memory", &text);
            let _ = cpu_quota(&text);
            let _ = ulimit(&text);
        }
    }
}
