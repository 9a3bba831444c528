//! What is run and as whom.

use serde_json::{Value, json};

use super::{ImageDefaults, SpecError};

/// Hidden in every container that is not privileged: Docker's list.
pub(super) const MASKED_PATHS: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/firmware",
];

/// Read-only in every container that is not privileged: Docker's list.
pub(super) const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Entry point and arguments as Docker joins them: an entry point that was given drops the image's arguments.
pub(crate) fn command_line(
    entrypoint: Option<&str>,
    command: &[String],
    image: &ImageDefaults,
) -> Result<Vec<String>, SpecError> {
    let mut out: Vec<String> = match entrypoint {
        Some("") => Vec::new(),
        Some(program) => vec![program.to_owned()],
        None => image.entrypoint.clone(),
    };
    if !command.is_empty() {
        out.extend_from_slice(command);
    } else if entrypoint.is_none() {
        out.extend_from_slice(&image.cmd);
    }
    match out.first() {
        None => Err(SpecError::NoCommand),
        Some(program) if program.is_empty() => Err(SpecError::NoCommand),
        Some(_) => Ok(out),
    }
}

/// OCI `process.user`. Names are resolved in the guest, from the image's own passwd and group; `username` carries
/// Docker's text there, and a numeric uid stands in `uid` as well.
pub(crate) fn user(text: &str) -> Result<Value, SpecError> {
    let bad = |reason: &str| SpecError::option("--user", text, reason);
    if text.is_empty() {
        return Ok(json!({ "uid": 0, "gid": 0 }));
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(bad("a name has no space and no control character"));
    }
    let (name, group) = text.split_once(':').unwrap_or((text, ""));
    if name.is_empty() || group.contains(':') {
        return Err(bad("expected USER[:GROUP]"));
    }
    let number = |text: &str| -> Result<u32, SpecError> {
        if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) {
            return Ok(0);
        }
        let most = i32::MAX as u32;
        text.parse::<u32>().ok().filter(|&id| id <= most).ok_or_else(|| bad("an id is at most 2147483647"))
    };
    Ok(json!({ "uid": number(name)?, "gid": number(group)?, "username": text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageDefaults {
        ImageDefaults { entrypoint: vec!["e".into()], cmd: vec!["c".into()], ..Default::default() }
    }

    fn line(entrypoint: Option<&str>, command: &[&str]) -> Vec<String> {
        let command: Vec<String> = command.iter().map(|&s| s.to_owned()).collect();
        command_line(entrypoint, &command, &image()).unwrap()
    }

    #[test]
    fn entrypoint_and_command_join_as_in_docker() {
        assert_eq!(line(None, &[]), ["e", "c"]);
        assert_eq!(line(None, &["x"]), ["e", "x"]);
        assert_eq!(line(Some("p"), &[]), ["p"]);
        assert_eq!(line(Some("p"), &["x"]), ["p", "x"]);
        assert_eq!(line(Some(""), &["x"]), ["x"]);
    }

    #[test]
    fn nothing_to_run_is_an_error() {
        assert!(matches!(command_line(Some(""), &[], &image()), Err(SpecError::NoCommand)));
    }

    #[test]
    fn c11_large_uid_is_refused() {
        assert!(user("4294967295").is_err() && user("2147483648").is_err());
        assert_eq!(user("1000:5").unwrap(), json!({ "uid": 1000, "gid": 5, "username": "1000:5" }));
    }

    #[test]
    fn c13_newline_in_user_is_refused() {
        assert!(user("a\nroot:x:0:0").is_err());
    }
}
