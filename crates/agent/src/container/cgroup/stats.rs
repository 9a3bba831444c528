//! Figures of a cgroup.

use nacre_protocol::rpc::agent::StatsReply;

use super::{Cgroup, CgroupError, field};

/// Longest memory.stat and io.stat that go out.
const MAX_TEXT: usize = 16 * 1024;

pub(super) fn read(cgroup: &Cgroup) -> Result<StatsReply, CgroupError> {
    let mut reply = StatsReply::default();
    let cpu = cgroup.read("cpu.stat")?;
    let of_cpu = |name| field(&cpu, name).unwrap_or(0);
    reply.cpu_usage_usec = of_cpu("usage_usec");
    reply.cpu_user_usec = of_cpu("user_usec");
    reply.cpu_system_usec = of_cpu("system_usec");
    reply.cpu_nr_periods = of_cpu("nr_periods");
    reply.cpu_nr_throttled = of_cpu("nr_throttled");
    reply.cpu_throttled_usec = of_cpu("throttled_usec");
    // A kernel may lack a controller; its figures are then 0.
    let number = |file: &str| cgroup.read(file).ok().map_or(0, |text| limit(&text));
    reply.memory_current = number("memory.current");
    reply.memory_peak = number("memory.peak");
    reply.memory_max = number("memory.max");
    reply.memory_swap_current = number("memory.swap.current");
    reply.memory_swap_max = number("memory.swap.max");
    reply.pids_current = number("pids.current");
    reply.pids_max = number("pids.max");
    reply.memory_oom_kill = cgroup.oom_kills().unwrap_or(0);
    reply.memory_stat = cut(cgroup.read("memory.stat").unwrap_or_default());
    reply.io_stat = cut(cgroup.read("io.stat").unwrap_or_default());
    Ok(reply)
}

/// A number; `max` is the greatest.
fn limit(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// Whole lines, at most [`MAX_TEXT`] bytes.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end =
            text.as_bytes().iter().take(MAX_TEXT).rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_is_the_greatest_number() {
        assert_eq!((limit("max\n"), limit("42\n"), limit("?")), (u64::MAX, 42, 0));
    }

    #[test]
    fn long_text_is_cut_between_lines() {
        let cut = cut("0123456789abcde\n".repeat(2000));
        assert_eq!(cut.len(), MAX_TEXT);
        assert!(cut.ends_with('\n'));
    }
}
