//! Watching a container's memory limit.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nacre_protocol::id::ContainerId;
use tokio::io::Interest;

use super::events::Events;
use super::instance::Watch;
use crate::sys;

/// Tells of each rise of `oom_kill` in a container's `memory.events`, until the watch is dropped or the cgroup is
/// gone. The kernel wakes pollers of the file at most every 10 ms, whatever the container does.
///
/// # Errors
/// Where the file cannot be watched.
pub(super) fn watch_oom(memory_events: File, id: ContainerId, events: Arc<Events>) -> io::Result<Watch> {
    let file = sys::watch(memory_events.into(), Interest::PRIORITY)?;
    let task = tokio::spawn(async move {
        let mut seen = oom_kills(file.get_ref()).unwrap_or(0);
        while let Ok(mut changed) = file.ready(Interest::PRIORITY).await {
            // Reading is what makes the kernel tell of the next change.
            let Some(kills) = oom_kills(file.get_ref()) else { return };
            if kills > seen {
                events.out_of_memory(&id);
            }
            seen = kills;
            changed.clear_ready();
        }
    });
    Ok(Watch(task.abort_handle()))
}

fn oom_kills(file: &OwnedFd) -> Option<u64> {
    let mut text = [0; 512];
    let length = rustix::io::pread(file, &mut text, 0).ok()?;
    parse_oom_kills(text.get(..length)?)
}

fn parse_oom_kills(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|count| count.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kill_is_found_among_its_neighbours() {
        let text = b"low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 9\n";
        assert_eq!(parse_oom_kills(text), Some(2));
    }

    #[test]
    fn file_without_oom_kill_has_no_count() {
        assert_eq!(parse_oom_kills(b"oom 3\noom_group_kill 9\n"), None);
    }
}
