//! Mounts of the configuration: what a guest makes itself, and what the host shares with it.
//!
//! A bind mount becomes a [`Share`], or a [`BundleFile`] where its source is a small file of the bundle, and its source
//! the path where the guest sees it. File systems that the
//! guest's kernel makes by itself (proc, tmpfs ...) stay as they are. Everything else, a mount of a host's
//! device say, is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nacre_protocol::files::FILES_DIR;
use nacre_protocol::fs::MAX_SHARES;
use nacre_protocol::ports::{SHARED_MEMORY_DIR, SHARES_DIR};
use serde_json::Value;

use super::files::{self, BundleFile};
use super::{in_bundle, pod};
use crate::mount_points::MountPoint;
use crate::text::harmless;

/// Types that the guest's kernel makes without anything of the host.
const GUEST_TYPES: [&str; 8] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs"];

/// Trees of the host's kernel. A guest has its own; a file server that passes the host's on would be a hole.
const KERNEL_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The one directory below a kernel tree that holds ordinary files.
const SHARED_MEMORY: &str = "/dev/shm";

/// A host file or directory that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Entry in the share's root.
    pub name: String,
    /// Path on the host.
    pub source: PathBuf,
    /// Writes are refused on the host's side.
    pub read_only: bool,
}

/// A mount that a guest cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// `mounts` has something else than mounts in it.
    #[error("mounts[{0}] of config.json is not a mount")]
    NotAMount(usize),
    /// A type that needs a device or a server of the host.
    #[error("mount of type {kind} on {destination} is not supported")]
    Type {
        /// The type.
        kind: String,
        /// Where it should go.
        destination: String,
    },
    /// A bind mount of the host's kernel file systems.
    #[error("{path} belongs to the host's kernel and is not shared with a guest")]
    KernelTree {
        /// The source.
        path: String,
    },
    /// More than the file server takes.
    #[error("{0} host files and directories are shared, at most {MAX_SHARES} are possible")]
    TooMany(usize),
}

/// Where the mounts of a configuration are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// The bundle's directory.
    pub(super) bundle: &'a Path,
    /// What the names of its shares begin with.
    pub(super) prefix: &'a str,
    /// The configuration's.
    pub(super) annotations: &'a BTreeMap<String, String>,
}

/// Makes a share or a file of each bind mount, rewrites its source to the path in the guest, and gives the files. The
/// shared memory of a pod is the guest's own.
pub(super) fn share_binds(
    document: &mut Value,
    place: &Place<'_>,
    shares: &mut Vec<Share>,
) -> Result<Vec<BundleFile>, MountError> {
    let mut files = Vec::new();
    let Some(mounts) = document.get_mut("mounts").and_then(Value::as_array_mut) else { return Ok(files) };
    for (index, mount) in mounts.iter_mut().enumerate() {
        let mount = mount.as_object_mut().ok_or(MountError::NotAMount(index))?;
        let text = |key: &str| mount.get(key).and_then(Value::as_str).unwrap_or_default();
        let kind = text("type").to_owned();
        let options = mount.get("options").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let has = |word: &str| options.iter().any(|option| option == word);
        if pod::is_own_shared_memory(&kind, text("destination"), place.annotations) {
            let flag = |option: &&Value| !option.as_str().is_some_and(|option| option.contains('='));
            let options = options.iter().filter(flag).cloned().chain([Value::from("rbind")]).collect();
            mount.insert("type".to_owned(), Value::from("bind"));
            mount.insert("source".to_owned(), Value::from(SHARED_MEMORY_DIR));
            mount.insert("options".to_owned(), Value::Array(options));
            continue;
        }
        if kind != "bind" && !has("bind") && !has("rbind") {
            if GUEST_TYPES.contains(&kind.as_str()) {
                continue;
            }
            let destination = harmless(text("destination"), 256);
            return Err(MountError::Type { kind: harmless(&kind, 32), destination });
        }
        let source = in_bundle(place.bundle, text("source"));
        if pod::is_shared_memory(&source, place.annotations) {
            mount.insert("source".to_owned(), Value::String(SHARED_MEMORY_DIR.to_owned()));
            continue;
        }
        refuse_kernel_trees(&source)?;
        let read_only = is_read_only(options);
        let name = format!("{}m{index}", place.prefix);
        if files::take(place.bundle, &source, &name, &mut files) {
            mount.insert("source".to_owned(), Value::String(format!("{FILES_DIR}/{name}")));
            continue;
        }
        mount.insert("source".to_owned(), Value::String(format!("{SHARES_DIR}/{name}")));
        shares.push(Share { name, source, read_only });
    }
    if shares.len() > MAX_SHARES {
        return Err(MountError::TooMany(shares.len()));
    }
    Ok(files)
}

/// What each mount needs to be mounted on; of those that are none, `share_binds` tells.
pub(super) fn points(document: &Value, bundle: &Path) -> Vec<MountPoint> {
    let mounts = document.get("mounts").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let point = |mount: &Value| {
        let text = |key: &str| mount.get(key).and_then(Value::as_str);
        let options = mount.get("options").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let bind = options.iter().any(|option| option == "bind" || option == "rbind")
            || text("type") == Some("bind");
        let source = text("source").filter(|_| bind).map(|source| in_bundle(bundle, source));
        Some(MountPoint { path: PathBuf::from(text("destination")?), source })
    };
    mounts.iter().filter_map(point).collect()
}

/// Whether the host refuses writes. `rro` and `rrw` are the recursive forms (OCI runtime specification, "Linux mount
/// options"); a share is of one kind as a whole, so that the last of all four counts.
fn is_read_only(options: &[Value]) -> bool {
    let last = options.iter().rfind(|option| ["ro", "rw", "rro", "rrw"].iter().any(|word| *option == word));
    last.is_some_and(|option| option == "ro" || option == "rro")
}

fn refuse_kernel_trees(source: &Path) -> Result<(), MountError> {
    let of_kernel = KERNEL_TREES.iter().any(|tree| source.starts_with(tree));
    if of_kernel && !source.starts_with(SHARED_MEMORY) {
        return Err(MountError::KernelTree { path: harmless(&source.to_string_lossy(), 256) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn share(mounts: Value) -> Result<(Vec<Share>, Value), MountError> {
        let mut document = json!({ "mounts": mounts });
        let mut shares = Vec::new();
        let annotations = BTreeMap::from([("io.kubernetes.cri.sandbox-id".to_owned(), "p1".to_owned())]);
        let place = Place { bundle: Path::new("/bundle"), prefix: "", annotations: &annotations };
        share_binds(&mut document, &place, &mut shares)?;
        Ok((shares, document["mounts"].take()))
    }

    #[test]
    fn bind_mount_becomes_a_share_that_the_guest_path_names() {
        let mount = json!({"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"]});
        let (shares, mounts) = share(json!([mount])).unwrap();
        assert_eq!(shares, [Share { name: "m0".into(), source: "/srv/data".into(), read_only: true }]);
        assert_eq!(mounts[0]["source"], "/run/nacre/shares/m0");
        assert_eq!(mounts[0]["destination"], "/data");
    }

    #[test]
    fn bind_option_without_a_type_is_a_bind_mount() {
        let (shares, _) =
            share(json!([{"destination": "/a", "source": "/a", "options": ["rbind", "ro", "rw"]}])).unwrap();
        assert!(!shares[0].read_only);
    }

    #[test]
    fn f11_recursively_read_only_is_read_only_on_the_host() {
        for (options, read_only) in [
            (vec!["rbind", "rro"], true),
            (vec!["rbind", "rro", "rw"], false),
            (vec!["rbind", "ro", "rrw"], false),
        ] {
            let (shares, _) =
                share(json!([{"destination": "/a", "source": "/a", "options": options}])).unwrap();
            assert_eq!(shares[0].read_only, read_only, "{options:?}");
        }
    }

    #[test]
    fn relative_source_is_below_the_bundle() {
        let (shares, _) =
            share(json!([{"destination": "/a", "type": "bind", "source": "etc/hosts"}])).unwrap();
        assert_eq!(shares[0].source, Path::new("/bundle/etc/hosts"));
    }

    #[test]
    fn small_file_of_the_bundle_goes_by_value_and_needs_no_share() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("hosts"), "x").unwrap();
        let mut document = json!({"mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "type": "bind", "source": "hosts", "options": ["rbind", "rprivate"]},
        ]});
        let mut shares = Vec::new();
        let place = Place { bundle: bundle.path(), prefix: "c2-", annotations: &BTreeMap::new() };
        let files = share_binds(&mut document, &place, &mut shares).unwrap();
        let expected =
            files::BundleFile { name: "c2-m1".into(), content: b"x".to_vec(), mode: files[0].mode };
        assert_eq!((shares, files), (vec![], vec![expected]));
        assert_eq!(document["mounts"][1]["source"], "/run/nacre/files/c2-m1");
    }

    #[test]
    fn mount_points_have_the_sources_of_binds_alone() {
        let document = json!({"mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "source": "hosts", "options": ["rbind"]},
            {"destination": 7},
        ]});
        let point = |path: &str, source: Option<&str>| MountPoint {
            path: path.into(),
            source: source.map(PathBuf::from),
        };
        let expected = [point("/proc", None), point("/etc/hosts", Some("/bundle/hosts"))];
        assert_eq!(points(&document, Path::new("/bundle")), expected);
    }

    #[test]
    fn guest_file_systems_stay_untouched() {
        let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"},
                            {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=64m"]}]);
        let (shares, after) = share(mounts.clone()).unwrap();
        assert_eq!((shares, after), (vec![], mounts));
    }

    #[test]
    fn shared_memory_of_a_pod_is_the_guests() {
        let source = "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/p1/shm";
        let mount =
            json!({"destination": "/dev/shm", "type": "bind", "source": source, "options": ["rbind"]});
        let (shares, mounts) = share(json!([mount])).unwrap();
        assert_eq!((shares, &mounts[0]["source"]), (vec![], &json!("/run/nacre/shm")));
        let options = json!(["nosuid", "noexec", "mode=1777", "size=65536k"]);
        let own = json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options});
        let (_, mounts) = share(json!([own])).unwrap();
        let expected = json!({
            "destination": "/dev/shm", "type": "bind", "source": "/run/nacre/shm",
            "options": ["nosuid", "noexec", "rbind"],
        });
        assert_eq!(mounts[0], expected);
    }

    #[test]
    fn mount_of_a_host_device_is_refused_by_type() {
        let error = share(json!([{"destination": "/x", "type": "ext4", "source": "/dev/sda1"}])).unwrap_err();
        assert_eq!(error.to_string(), "mount of type ext4 on /x is not supported");
    }

    #[test]
    fn kernel_trees_of_the_host_are_refused() {
        for source in ["/proc", "/proc/1/root", "/sys/fs/cgroup", "/dev/sda"] {
            let result = share(json!([{"destination": "/x", "type": "bind", "source": source}]));
            assert!(matches!(result, Err(MountError::KernelTree { .. })), "{source}");
        }
        assert!(share(json!([{"destination": "/x", "type": "bind", "source": "/dev/shm/x"}])).is_ok());
    }

    #[test]
    fn more_shares_than_one_message_carries_are_refused() {
        let mount = json!({"destination": "/x", "type": "bind", "source": "/x"});
        assert!(matches!(share(Value::Array(vec![mount; MAX_SHARES + 1])), Err(MountError::TooMany(_))));
    }
}
