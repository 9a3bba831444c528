//! Mounts of the configuration: what a guest makes itself, and what the host shares with it.
//!
//! A bind mount becomes a [`Share`], or a [`BundleFile`] where its source is a small file of the bundle, and its source
//! the path where the guest sees it. File systems that the
//! guest's kernel makes by itself (proc, tmpfs ...) stay as they are. Everything else, a mount of a host's
//! device say, is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nacre_protocol::files::FILES_DIR;
use nacre_protocol::fs::{MAX_SHARES, Submounts};
use nacre_protocol::ports::{SHARED_MEMORY_DIR, SHARES_DIR};
use nacre_protocol::volumes::VOLUMES_DIR;
use serde_json::{Map, Value, json};

use super::files::{self, BundleFile};
use super::nodes::{self, Node};
use super::{BlockDevice, in_bundle, pod};
use crate::mount_points::MountPoint;
use crate::mount_table;
use crate::text::harmless;
use crate::users::{IdMap, IdMaps};
use crate::volumes::{Volume, is_kept_by_a_kubelet};

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
    /// What is mounted below it.
    pub submounts: Submounts,
    /// Its ids are those of the container's user namespace.
    pub id_mapped: bool,
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
    /// A driver of the host.
    #[error(
        "{path} is a character device of the host, which a VM cannot use; it has its own null, zero, full, random, urandom, \
         tty, fuse and net/tun"
    )]
    CharDevice {
        /// The source.
        path: String,
    },
    /// A mount that should appear on the host.
    #[error(
        "the mount on {destination} has bidirectional propagation: what a container mounts is mounted in its VM and cannot \
         appear on the host; use HostToContainer or None, or another runtime class"
    )]
    Propagation {
        /// Where it should go.
        destination: String,
    },
    /// Ids that are mapped in a way of their own.
    #[error(
        "the mount on {destination} has id mappings that are not those of the container's user namespace, which is not supported"
    )]
    IdMap {
        /// Where it should go.
        destination: String,
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
    /// The container's ids, where it is in a user namespace.
    pub(super) users: Option<&'a IdMaps>,
}

/// What bind mounts become beside shares.
#[derive(Debug, Default)]
pub(super) struct Binds {
    /// Small files of the bundle.
    pub(super) files: Vec<BundleFile>,
    /// Block devices of the host.
    pub(super) disks: Vec<BlockDevice>,
}

/// Makes a share, a file, a device or (where `volumes` takes them) a volume of each bind mount, rewrites its source to the
/// path in the guest, and gives files and disks. The shared memory of a pod is the guest's own.
pub(super) fn share_binds(
    document: &mut Value,
    place: &Place<'_>,
    shares: &mut Vec<Share>,
    mut volumes: Option<&mut Vec<Volume>>,
) -> Result<Binds, MountError> {
    let mut binds = Binds::default();
    let mut devices = Vec::new();
    let Some(mounts) = document.get_mut("mounts").and_then(Value::as_array_mut) else { return Ok(binds) };
    let mut gone = BTreeSet::new();
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
        let id_mapped = has_mapped_ids(mount, place.users)?;
        let text = |key: &str| mount.get(key).and_then(Value::as_str).unwrap_or_default();
        let options = mount.get("options").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let has = |word: &str| options.iter().any(|option| option == word);
        let source = in_bundle(place.bundle, text("source"));
        if pod::is_shared_memory(&source, place.annotations) {
            mount.insert("source".to_owned(), Value::String(SHARED_MEMORY_DIR.to_owned()));
            continue;
        }
        if has("shared") || has("rshared") {
            return Err(MountError::Propagation { destination: harmless(text("destination"), 256) });
        }
        let read_only = is_read_only(options);
        let name = format!("{}m{index}", place.prefix);
        if let Some(node) = nodes::take(&source, text("destination"), read_only, name.clone())? {
            gone.insert(index);
            match node {
                Node::OfGuest(node) => devices.push(node),
                Node::Disk(disk) => binds.disks.push(disk),
                Node::Present => {}
            }
            continue;
        }
        refuse_kernel_trees(&source)?;
        if files::take(place.bundle, &source, &name, &mut binds.files) {
            mount.insert("source".to_owned(), Value::String(format!("{FILES_DIR}/{name}")));
            continue;
        }
        if let Some(volumes) = volumes.as_deref_mut().filter(|_| read_only && is_kept_by_a_kubelet(&source)) {
            mount.insert("source".to_owned(), Value::String(format!("{VOLUMES_DIR}/{name}")));
            let users = place.users.filter(|_| id_mapped).cloned();
            volumes.push(Volume { name, source, users });
            continue;
        }
        let submounts = submounts(options, &source);
        if read_only && submounts != Submounts::AsShare {
            // To the guest it is one mount; the host knows which directories of it can be written.
            let options = options.iter().filter(|option| **option != "ro").cloned().collect();
            mount.insert("options".to_owned(), Value::Array(options));
        }
        mount.insert("source".to_owned(), Value::String(format!("{SHARES_DIR}/{name}")));
        shares.push(Share { name, source, read_only, submounts, id_mapped });
    }
    if shares.len() > MAX_SHARES {
        return Err(MountError::TooMany(shares.len()));
    }
    let mut index = 0..;
    mounts.retain(|_| index.next().is_some_and(|index| !gone.contains(&index)));
    add_devices(document, devices);
    Ok(binds)
}

/// Whether the ids of a mount are mapped, and takes out what says so: the host does it. Not those of what is mounted below
/// (`ridmap`), which the agent refuses.
fn has_mapped_ids(mount: &mut Map<String, Value>, users: Option<&IdMaps>) -> Result<bool, MountError> {
    let mut lines = |key: &str| {
        let lines = mount.remove(key).filter(|lines| !lines.is_null());
        lines.map_or(Ok(Vec::new()), serde_json::from_value::<Vec<IdMap>>)
    };
    let maps = match (lines("uidMappings"), lines("gidMappings")) {
        (Ok(uids), Ok(gids)) => IdMaps::new(uids, gids).ok(),
        _ => None,
    };
    let options = mount.get_mut("options").and_then(Value::as_array_mut);
    let said = options.is_some_and(|options| {
        let before = options.len();
        options.retain(|option| option != "idmap");
        options.len() < before
    });
    match maps {
        // By the option alone: as those of the container.
        Some(None) if !said => Ok(false),
        Some(None) if users.is_some() => Ok(true),
        Some(Some(maps)) if Some(&maps) == users => Ok(true),
        _ => {
            let destination = mount.get("destination").and_then(Value::as_str).unwrap_or_default();
            Err(MountError::IdMap { destination: harmless(destination, 256) })
        }
    }
}

/// The guest's own devices among the container's.
fn add_devices(document: &mut Value, nodes: Vec<Value>) {
    let linux = document.as_object_mut().map(|document| document.entry("linux").or_insert_with(|| json!({})));
    let Some(linux) = linux.and_then(Value::as_object_mut).filter(|_| !nodes.is_empty()) else { return };
    // Go writes null for an empty list.
    match linux.get_mut("devices").and_then(Value::as_array_mut) {
        Some(devices) => devices.extend(nodes),
        None => drop(linux.insert("devices".to_owned(), Value::Array(nodes))),
    }
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
/// options"); the last of all four counts.
fn is_read_only(options: &[Value]) -> bool {
    matches!(last(options, &["ro", "rw", "rro", "rrw"]), Some("ro" | "rro"))
}

/// The last of these words among the options.
fn last<'a>(options: &[Value], words: &[&'a str]) -> Option<&'a str> {
    options.iter().rev().find_map(|option| words.iter().find(|word| option == *word).copied())
}

/// What a share has of what is mounted below its source. `ro` is of the mount alone, as with any runtime; what is recursively
/// read-only does not follow, since nobody could make a later mount read-only before the guest sees it.
fn submounts(options: &[Value], source: &Path) -> Submounts {
    let access = last(options, &["ro", "rw", "rro", "rrw"]);
    let propagation = last(options, &["private", "rprivate", "slave", "rslave", "unbindable", "runbindable"]);
    match (access, propagation) {
        (Some("rro"), _) => Submounts::AsShare,
        (_, Some("slave" | "rslave")) => Submounts::Following,
        (Some("ro"), _) if has_mounts_below(source) => Submounts::AsHost,
        _ => Submounts::AsShare,
    }
}

/// By the path as it is written: a look at the file could wait for a server that is gone. Behind a link there is nothing, and
/// the share is read-only as a whole.
fn has_mounts_below(source: &Path) -> bool {
    mount_table::read().is_ok_and(|table| mount_table::has_below(&table, source))
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
        let place =
            Place { bundle: Path::new("/bundle"), prefix: "", annotations: &annotations, users: None };
        share_binds(&mut document, &place, &mut shares, None)?;
        Ok((shares, document["mounts"].take()))
    }

    #[test]
    fn bind_mount_becomes_a_share_that_the_guest_path_names() {
        let mount = json!({"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"]});
        let (shares, mounts) = share(json!([mount])).unwrap();
        assert_eq!(
            shares,
            [Share {
                name: "m0".into(),
                source: "/srv/data".into(),
                read_only: true,
                submounts: Submounts::AsShare,
                id_mapped: false,
            }]
        );
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
    fn f10_what_is_mounted_below_is_read_only_where_that_is_asked_and_follows_where_that_is() {
        // Any Linux has mounts below /.
        for (source, options, submounts, guest) in [
            (
                "/srv/data",
                vec!["rbind", "rprivate", "ro"],
                Submounts::AsShare,
                vec!["rbind", "rprivate", "ro"],
            ),
            ("/", vec!["rbind", "rprivate", "ro"], Submounts::AsHost, vec!["rbind", "rprivate"]),
            ("/", vec!["rbind", "rprivate", "rro"], Submounts::AsShare, vec!["rbind", "rprivate", "rro"]),
            ("/", vec!["rbind", "rprivate", "rw"], Submounts::AsShare, vec!["rbind", "rprivate", "rw"]),
            ("/srv/data", vec!["rbind", "rslave", "ro"], Submounts::Following, vec!["rbind", "rslave"]),
            ("/srv/data", vec!["rbind", "rslave", "rro"], Submounts::AsShare, vec!["rbind", "rslave", "rro"]),
            (
                "/srv/data",
                vec!["rbind", "rslave", "rprivate"],
                Submounts::AsShare,
                vec!["rbind", "rslave", "rprivate"],
            ),
            ("/srv/data", vec!["rbind", "rslave"], Submounts::Following, vec!["rbind", "rslave"]),
        ] {
            let (shares, mounts) =
                share(json!([{"destination": "/a", "source": source, "options": options}])).unwrap();
            assert_eq!(shares[0].submounts, submounts, "{source} {options:?}");
            assert_eq!(mounts[0]["options"], json!(guest), "{source} {options:?}");
        }
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
        let place =
            Place { bundle: bundle.path(), prefix: "c2-", annotations: &BTreeMap::new(), users: None };
        let Binds { files, .. } = share_binds(&mut document, &place, &mut shares, None).unwrap();
        let expected =
            files::BundleFile { name: "c2-m1".into(), content: b"x".to_vec(), mode: files[0].mode };
        assert_eq!((shares, files), (vec![], vec![expected]));
        assert_eq!(document["mounts"][1]["source"], "/run/nacre/files/c2-m1");
    }

    #[test]
    fn volumes_of_a_kubelet_go_by_value_where_they_are_read_only() {
        let source = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/c";
        let mount = |destination: &str, access: &str| json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", access]});
        let mut document = json!({"mounts": [mount("/a", "ro"), mount("/b", "rw")]});
        let (mut shares, mut volumes) = (Vec::new(), Vec::new());
        let place =
            Place { bundle: Path::new("/bundle"), prefix: "c2-", annotations: &BTreeMap::new(), users: None };
        share_binds(&mut document, &place, &mut shares, Some(&mut volumes)).unwrap();
        assert_eq!(volumes, [Volume { name: "c2-m0".into(), source: source.into(), users: None }]);
        assert_eq!(document["mounts"][0]["source"], "/run/nacre/volumes/c2-m0");
        assert_eq!((shares.len(), shares[0].read_only), (1, false));
    }

    #[test]
    fn mounts_that_should_appear_on_the_host_are_refused_and_the_other_way_is_not() {
        let mount = |word: &str| json!([{"destination": "/x", "type": "bind", "source": "/srv", "options": ["rbind", word]}]);
        for word in ["rshared", "shared"] {
            let error = share(mount(word)).unwrap_err().to_string();
            assert!(error.starts_with("the mount on /x has bidirectional propagation"), "{error}");
        }
        for word in ["rslave", "rprivate"] {
            share(mount(word)).unwrap();
        }
    }

    #[test]
    fn device_nodes_are_no_mounts_but_devices_of_the_guest() {
        let mount =
            |path: &str| json!({"destination": path, "type": "bind", "source": path, "options": ["rbind"]});
        for linux in [Value::Null, json!({"devices": null})] {
            let mounts = json!([mount("/dev/fuse"), mount("/srv"), mount("/dev/null")]);
            let mut document = json!({ "mounts": mounts });
            if linux.is_object() {
                document["linux"] = linux;
            }
            let place = Place {
                bundle: Path::new("/bundle"),
                prefix: "",
                annotations: &BTreeMap::new(),
                users: None,
            };
            share_binds(&mut document, &place, &mut Vec::new(), None).unwrap();
            assert_eq!(document["mounts"].as_array().unwrap().len(), 1);
            assert_eq!(document["mounts"][0]["destination"], "/srv");
            assert_eq!(document["linux"]["devices"][0]["path"], "/dev/fuse");
        }
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
        for source in ["/proc", "/proc/1/root", "/sys/fs/cgroup", "/dev", "/dev/missing"] {
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

    fn mapped(mount: Value, users: Option<&IdMaps>) -> Result<(Vec<Share>, Value), MountError> {
        let mut document = json!({ "mounts": [mount] });
        let mut shares = Vec::new();
        let place = Place { bundle: Path::new("/bundle"), prefix: "", annotations: &BTreeMap::new(), users };
        share_binds(&mut document, &place, &mut shares, None)?;
        Ok((shares, document["mounts"][0].take()))
    }

    #[test]
    fn ids_of_a_mount_are_the_hosts_to_map_and_none_but_the_containers() {
        let lines = |host| json!([{"containerID": 0, "hostID": host, "size": 65536}]);
        let maps = serde_json::from_value::<Vec<IdMap>>(lines(100_000)).unwrap();
        let users = IdMaps::new(maps.clone(), maps).unwrap();
        let mount = |host: u32| {
            json!({"destination": "/a", "source": "/a", "type": "bind", "options": ["rbind"],
                "uidMappings": lines(host), "gidMappings": lines(host)})
        };
        let (shares, sent) = mapped(mount(100_000), users.as_ref()).unwrap();
        assert!(shares[0].id_mapped);
        assert_eq!(sent["uidMappings"], Value::Null);
        // In one word.
        let plain =
            json!({"destination": "/a", "source": "/a", "options": ["rbind", "idmap"], "uidMappings": null});
        let (shares, sent) = mapped(plain.clone(), users.as_ref()).unwrap();
        assert!(shares[0].id_mapped);
        assert_eq!(sent["options"], json!(["rbind"]));
        // Without either, files belong to whom they do on the host.
        let (shares, _) =
            mapped(json!({"destination": "/a", "source": "/a", "options": ["bind"]}), users.as_ref())
                .unwrap();
        assert!(!shares[0].id_mapped);
        let mut half = mount(100_000);
        half["gidMappings"] = json!([]);
        let mut text = mount(100_000);
        text["uidMappings"] = json!("all");
        for (bad, users) in [
            (mount(200_000), users.as_ref()),
            (half, users.as_ref()),
            (text, users.as_ref()),
            (mount(100_000), None),
            (plain, None),
        ] {
            assert!(matches!(mapped(bad.clone(), users), Err(MountError::IdMap { .. })), "{bad}");
        }
    }
}
