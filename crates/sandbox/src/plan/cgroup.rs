//! Where a sandbox's processes go on the host, and what they may use there.

use super::resources::{CpuMax, Size};
use super::spec::Linux;
use crate::config::VmSettings;
use crate::text::harmless;

/// Threads that a VMM and a file server have beside the vCPUs, with room to spare.
const OTHER_THREADS: u32 = 96;

/// Memory of the file server in MiB.
const FS_MIB: u64 = 32;

/// A cgroup and its limits. The limits on a container hold inside the guest; here stands the sum of the guest
/// and the processes that carry it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CgroupPlan {
    /// Path below each hierarchy's root, without a slash at its begin; none: the shim's own cgroup.
    pub path: Option<String>,
    /// Memory, with the guest's.
    pub memory_max_bytes: u64,
    /// Threads.
    pub pids_max: u32,
    /// CPU bandwidth.
    pub cpu_max: Option<CpuMax>,
    /// cgroup v1 `cpu.shares`.
    pub cpu_shares: Option<u64>,
}

/// A cgroup path that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cgroup path {0:?} is neither a plain path nor slice:prefix:name")]
pub struct CgroupPathError(String);

pub(super) fn plan(
    linux: &Linux,
    settings: &VmSettings,
    size: &Size,
    has_shares: bool,
) -> Result<CgroupPlan, CgroupPathError> {
    let fs_mib = if has_shares { FS_MIB } else { 0 };
    let memory_mib = u64::from(size.memory_mib) + u64::from(settings.vmm_overhead_mib) + fs_mib;
    Ok(CgroupPlan {
        path: parse_path(&linux.cgroups_path)?,
        memory_max_bytes: memory_mib << 20,
        pids_max: u32::from(size.vcpus) + OTHER_THREADS,
        cpu_max: size.cpu_max,
        cpu_shares: size.cpu_shares,
    })
}

/// Both forms of `linux.cgroupsPath`: a path, or systemd's `slice:prefix:name`, which becomes the path that
/// systemd would give the scope.
fn parse_path(text: &str) -> Result<Option<String>, CgroupPathError> {
    let error = || CgroupPathError(harmless(text, 256));
    if text.is_empty() {
        return Ok(None);
    }
    let path = match text.split(':').collect::<Vec<_>>()[..] {
        [_] => text.trim_matches('/').to_owned(),
        [slice, prefix, name] => systemd_path(slice, prefix, name).ok_or_else(error)?,
        _ => return Err(error()),
    };
    let good = |part: &str| {
        !matches!(part, "" | "." | "..") && part.len() <= 255 && !part.contains(char::is_control)
    };
    if path.len() > 2048 || !path.split('/').all(good) {
        return Err(error());
    }
    Ok(Some(path))
}

/// `a-b.slice`, `cri`, `id` -> `a.slice/a-b.slice/cri-id.scope` (systemd.slice(5)).
fn systemd_path(slice: &str, prefix: &str, name: &str) -> Option<String> {
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let stem = slice.strip_suffix(".slice")?;
    let mut path = String::new();
    if stem != "-" {
        let mut upto = String::new();
        for part in stem.split('-') {
            if part.is_empty() || part.contains('/') {
                return None;
            }
            upto.push_str(part);
            path.push_str(&upto);
            path.push_str(".slice/");
            upto.push('-');
        }
    }
    if name.is_empty() || name.contains('/') || prefix.contains('/') {
        return None;
    }
    match name.ends_with(".slice") {
        true => path.push_str(name),
        false if prefix.is_empty() => path.push_str(&format!("{name}.scope")),
        false => path.push_str(&format!("{prefix}-{name}.scope")),
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_path_loses_its_outer_slashes() {
        assert_eq!(parse_path("/default/web").unwrap().as_deref(), Some("default/web"));
        assert_eq!(parse_path("").unwrap(), None);
    }

    #[test]
    fn systemd_form_is_expanded() {
        let path = parse_path("kubepods-burstable-pod1.slice:cri-containerd:abc").unwrap().unwrap();
        assert_eq!(
            path,
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope"
        );
        assert_eq!(parse_path("system.slice:docker:x").unwrap().unwrap(), "system.slice/docker-x.scope");
        assert_eq!(parse_path("::x").unwrap().unwrap(), "system.slice/x.scope");
        assert_eq!(parse_path("-.slice:a:b").unwrap().unwrap(), "a-b.scope");
    }

    #[test]
    fn h09_paths_that_climb_are_refused() {
        for bad in [
            "..",
            "/a/../b",
            "a//b",
            "/",
            "a:b",
            "a.slice:x:../y",
            "a--b.slice:x:y",
            "a/b\nc",
            "x:y:z:w",
            "./a",
        ] {
            assert!(parse_path(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn h09_accepted_paths_never_climb(text in "[a-z.:/-]{0,60}") {
            if let Ok(Some(path)) = parse_path(&text) {
                prop_assert!(!path.starts_with('/'));
                prop_assert!(path.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
            }
        }
    }
}
