//! The mounts of this process: `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::path::{Path, PathBuf};

/// The whole table, a line for each mount.
pub(crate) fn read() -> std::io::Result<String> {
    std::fs::read_to_string("/proc/self/mountinfo")
}

/// Whether something is mounted below `dir`, a path without links. Not at `dir` itself.
pub(crate) fn has_below(table: &str, dir: &Path) -> bool {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.into_iter().any(|point| point != dir && point.starts_with(dir))
}

/// Space, tab, newline and backslash stand as three octal digits.
pub(crate) fn unescape(text: &str) -> PathBuf {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let text = plain.iter().fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain));
    Path::new(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_below_a_directory_is_found_and_its_own_is_not() {
        let table =
            "30 23 0:26 / /srv rw - tmpfs tmpfs rw\n31 23 0:27 / /srv/a\\040b/c rw - tmpfs tmpfs rw\n";
        for (dir, has) in
            [("/", true), ("/srv", true), ("/srv/a b", true), ("/srv/a b/c", false), ("/srv/a", false)]
        {
            assert_eq!(has_below(table, Path::new(dir)), has, "{dir}");
        }
    }
}
