//! Capabilities (capabilities(7)): Docker's default set, `--cap-add`, `--cap-drop`.

use super::SpecError;

/// What a container has unless told otherwise: Docker's documented default.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All that the guest kernel knows (linux/capability.h, 6.12).
const ALL: [&str; 41] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
];

/// The capabilities of a container: `ALL` added or dropped first, then the single ones, as Docker does.
pub(super) fn resolve(add: &[String], drop: &[String], privileged: bool) -> Result<Vec<String>, SpecError> {
    let add = normalize("--cap-add", add)?;
    let drop = normalize("--cap-drop", drop)?;
    let base: &[&'static str] = if privileged || add.contains(&"ALL") {
        &ALL
    } else if drop.contains(&"ALL") {
        &[]
    } else {
        &DEFAULT
    };
    let mut out: Vec<&'static str> = base.iter().copied().filter(|cap| !drop.contains(cap)).collect();
    for cap in add {
        if cap != "ALL" && !out.contains(&cap) {
            out.push(cap);
        }
    }
    out.sort_unstable();
    Ok(out.into_iter().map(str::to_owned).collect())
}

/// Every capability, for a privileged exec.
pub(crate) fn all() -> Vec<String> {
    ALL.iter().map(|&cap| cap.to_owned()).collect()
}

fn normalize(option: &'static str, names: &[String]) -> Result<Vec<&'static str>, SpecError> {
    let one = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper == "ALL" {
            return Ok("ALL");
        }
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        let known = ALL.iter().copied().find(|&cap| cap == full);
        known.ok_or_else(|| SpecError::option(option, name, "no such capability"))
    };
    names.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(add: &[&str], drop: &[&str]) -> Vec<String> {
        let own = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        resolve(&own(add), &own(drop), false).unwrap()
    }

    #[test]
    fn single_capability_after_drop_all_is_the_only_one() {
        assert_eq!(resolved(&["net_admin"], &["all"]), ["CAP_NET_ADMIN"]);
    }

    #[test]
    fn dropped_capability_is_not_there() {
        assert!(!resolved(&[], &["CAP_MKNOD"]).contains(&"CAP_MKNOD".to_owned()));
    }

    #[test]
    fn all_but_one() {
        let caps = resolved(&["ALL"], &["SYS_ADMIN"]);
        assert_eq!(caps.len(), ALL.len() - 1);
    }

    #[test]
    fn unknown_capability_is_refused() {
        assert!(resolve(&["FLY".into()], &[], false).is_err());
    }
}
