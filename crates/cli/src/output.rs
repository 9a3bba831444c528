//! What is printed: error lines, tables, short ids and times. Text from images and guests is escaped (A05).

use std::fmt::Write as _;
use std::io;

/// Longest piece of foreign text on a terminal.
const MAX_TEXT: usize = 2048;

/// How an error that the disk's size causes begins.
const DISK_FULL: &str = "disk full";

/// The chain of an error on one line, causes after a colon, without what a cause repeats.
pub(crate) fn error_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if text.is_empty() || line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    let full = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::StorageFull)
    };
    if error.chain().any(full) && !line.contains(DISK_FULL) {
        line = format!("{DISK_FULL}: {line}; free some space, for example with `nacre system prune`");
    }
    escape(&line)
}

/// Control characters as `\xNN`, and a cut after [`MAX_TEXT`] characters.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_TEXT));
    for (count, c) in text.chars().enumerate() {
        if count == MAX_TEXT {
            out.push('…');
            break;
        }
        match c {
            '\t' => out.push(' '),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// A table with a heading line and columns as wide as they need to be.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut builder = tabled::builder::Builder::default();
    builder.push_record(heading);
    for row in rows {
        builder.push_record(row.map(|cell| escape(&cell)));
    }
    let mut table = builder.build();
    table.with(tabled::settings::Style::empty());
    table.with(tabled::settings::Padding::new(0, 2, 0, 0));
    table.to_string()
}

/// The first 12 characters of an id, after its `sha256:`.
pub(crate) fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id)
}

/// `77.3MB`, as Docker prints sizes: powers of 1000.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < units.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes}B") } else { format!("{value:.3}{}", units[unit]).replace(".000", "") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_is_one_line_without_repeats() {
        let error = anyhow::anyhow!("disk full").context("cannot write /x: disk full").context("cannot pull");
        assert_eq!(error_line(&error), "cannot pull: cannot write /x: disk full");
    }

    #[test]
    fn full_disk_is_told_with_what_to_do() {
        let error = anyhow::Error::new(io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32));
        let line = error_line(&error.context("cannot use /data/containers"));
        assert!(line.starts_with("disk full: cannot use /data/containers: No space left"), "{line}");
        assert!(line.ends_with("for example with `nacre system prune`"), "{line}");
    }

    #[test]
    fn a05_escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(escape("a\x1b[2Jb\nc"), "a\\x1b[2Jb\\x0ac");
        assert!(escape(&"x".repeat(1 << 20)).chars().count() <= MAX_TEXT + 1);
    }

    #[test]
    fn sizes_read_as_docker_prints_them() {
        assert_eq!(size(999), "999B");
        assert_eq!(size(77_300_000), "77.300MB");
    }
}
