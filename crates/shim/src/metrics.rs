//! Figures of a container as containerd's cgroup v2 metrics. They come from the guest and are numbers, nothing else.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use nacre_sandbox::agent::StatsReply;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

/// containerd's name of the type.
const TYPE_URL: &str = "io.containerd.cgroups.v2.Metrics";

/// Devices that are told of; a guest has a handful.
const MAX_DEVICES: usize = 64;

/// The metrics, wrapped as containerd expects them.
pub(crate) fn metrics(stats: &StatsReply) -> protobuf::Result<Any> {
    let metrics = Metrics {
        pids: Some(PidsStat { current: stats.pids_current, limit: stats.pids_max, ..PidsStat::default() })
            .into(),
        cpu: Some(cpu(stats)).into(),
        memory: Some(memory(stats)).into(),
        io: Some(IOStat { usage: io(&stats.io_stat), ..IOStat::default() }).into(),
        memory_events: Some(MemoryEvents { oom_kill: stats.memory_oom_kill, ..MemoryEvents::default() })
            .into(),
        ..Metrics::default()
    };
    Ok(Any { type_url: TYPE_URL.to_owned(), value: metrics.write_to_bytes()?, ..Any::default() })
}

fn cpu(stats: &StatsReply) -> CPUStat {
    CPUStat {
        usage_usec: stats.cpu_usage_usec,
        user_usec: stats.cpu_user_usec,
        system_usec: stats.cpu_system_usec,
        nr_periods: stats.cpu_nr_periods,
        nr_throttled: stats.cpu_nr_throttled,
        throttled_usec: stats.cpu_throttled_usec,
        ..CPUStat::default()
    }
}

fn memory(stats: &StatsReply) -> MemoryStat {
    let mut memory = MemoryStat {
        usage: stats.memory_current,
        usage_limit: stats.memory_max,
        max_usage: stats.memory_peak,
        swap_usage: stats.memory_swap_current,
        swap_limit: stats.memory_swap_max,
        ..MemoryStat::default()
    };
    for line in stats.memory_stat.lines() {
        if let Some((name, value)) = line.split_once(' ')
            && let (Some(field), Ok(value)) = (memory_field(&mut memory, name), value.trim().parse())
        {
            *field = value;
        }
    }
    memory
}

/// The field of a line of memory.stat.
fn memory_field<'a>(memory: &'a mut MemoryStat, name: &str) -> Option<&'a mut u64> {
    Some(match name {
        "anon" => &mut memory.anon,
        "file" => &mut memory.file,
        "kernel_stack" => &mut memory.kernel_stack,
        "slab" => &mut memory.slab,
        "sock" => &mut memory.sock,
        "shmem" => &mut memory.shmem,
        "file_mapped" => &mut memory.file_mapped,
        "file_dirty" => &mut memory.file_dirty,
        "file_writeback" => &mut memory.file_writeback,
        "anon_thp" => &mut memory.anon_thp,
        "inactive_anon" => &mut memory.inactive_anon,
        "active_anon" => &mut memory.active_anon,
        "inactive_file" => &mut memory.inactive_file,
        "active_file" => &mut memory.active_file,
        "unevictable" => &mut memory.unevictable,
        "slab_reclaimable" => &mut memory.slab_reclaimable,
        "slab_unreclaimable" => &mut memory.slab_unreclaimable,
        "pgfault" => &mut memory.pgfault,
        "pgmajfault" => &mut memory.pgmajfault,
        "workingset_refault" => &mut memory.workingset_refault,
        "workingset_activate" => &mut memory.workingset_activate,
        "workingset_nodereclaim" => &mut memory.workingset_nodereclaim,
        "pgrefill" => &mut memory.pgrefill,
        "pgscan" => &mut memory.pgscan,
        "pgsteal" => &mut memory.pgsteal,
        "pgactivate" => &mut memory.pgactivate,
        "pgdeactivate" => &mut memory.pgdeactivate,
        "pglazyfree" => &mut memory.pglazyfree,
        "pglazyfreed" => &mut memory.pglazyfreed,
        "thp_fault_alloc" => &mut memory.thp_fault_alloc,
        "thp_collapse_alloc" => &mut memory.thp_collapse_alloc,
        _ => return None,
    })
}

/// Lines of io.stat: `MAJ:MIN key=value ...`.
fn io(text: &str) -> Vec<IOEntry> {
    let entry = |line: &str| {
        let (device, figures) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let figure = |key: &str| {
            let found = figures.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            found.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        Some(IOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: figure("rbytes"),
            wbytes: figure("wbytes"),
            rios: figure("rios"),
            wios: figure("wios"),
            ..IOEntry::default()
        })
    };
    text.lines().filter_map(entry).take(MAX_DEVICES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_the_kernels_files_arrive() {
        let stats = StatsReply {
            cpu_usage_usec: 5,
            memory_current: 7,
            memory_stat: "anon 11\npgfault 13\nunknown 1\n".into(),
            io_stat: "254:0 rbytes=17 wbytes=0 rios=3 wios=0 dbytes=0\n".into(),
            ..StatsReply::default()
        };
        let any = metrics(&stats).unwrap();
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        assert_eq!((metrics.cpu.usage_usec, metrics.memory.usage), (5, 7));
        assert_eq!((metrics.memory.anon, metrics.memory.pgfault), (11, 13));
        assert_eq!(
            (metrics.io.usage[0].major, metrics.io.usage[0].rbytes, metrics.io.usage[0].rios),
            (254, 17, 3)
        );
    }

    #[test]
    fn h12_nonsense_of_a_guest_is_skipped() {
        let lines = "x\n:\n1:2\n1:2 rbytes\n99999999999999999999:0 rbytes=1\n1:1 rbytes=-5\n".repeat(200);
        let stats = StatsReply {
            memory_stat: "anon x\nanon\n\u{1b}[31m 5\n".into(),
            io_stat: lines,
            ..StatsReply::default()
        };
        let metrics = Metrics::parse_from_bytes(&metrics(&stats).unwrap().value).unwrap();
        assert_eq!(metrics.memory.anon, 0);
        assert!(metrics.io.usage.len() <= MAX_DEVICES);
    }
}
