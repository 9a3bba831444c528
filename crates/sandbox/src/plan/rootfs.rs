//! Mounts that make a root file system: EROFS blobs for a disk, or a directory of the host.
//!
//! | mounts | the guest gets |
//! |---|---|
//! | `erofs` ... (bottom first), and at most one `tmpfs` or `overlay` with a `size=` | the blobs on one read-only disk, overlaid |
//! | one `ext4` | the device or file as a disk, mounted by the guest's kernel |
//! | `overlay`, `bind` ... | the host mounts them on the bundle's root directory and shares that |
//! | none | the configuration's `root.path` is shared |

use std::path::{Path, PathBuf};

use nacre_protocol::fs::Submounts;

use super::mounts::Share;
use super::spec::Root;
use crate::text::harmless;
use crate::users;

/// Most layers of an image: each is a descriptor of the one message that starts a VM.
pub const MAX_LAYERS: usize = 240;

/// Name of the root directory's share.
pub const ROOTFS_SHARE: &str = "rootfs";

/// A mount as containerd describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// File system type.
    pub kind: String,
    /// Device, file or directory.
    pub source: String,
    /// Below the root directory; empty: the root itself.
    pub target: String,
    /// Options as mount(8) has them.
    pub options: Vec<String>,
}

/// Where a root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootfsPlan {
    /// None: a sandbox without a container of its own.
    None,
    /// EROFS blobs, bottom first.
    Layers {
        /// The files.
        blobs: Vec<PathBuf>,
        /// Serial of the disk that has them.
        disk_id: String,
        /// Bytes that the writable layer may hold; 0: the agent's default.
        upper_limit_bytes: u64,
    },
    /// An ext4 file system that the host never looks at.
    Disk {
        /// Block device or file.
        source: PathBuf,
        /// Serial of its disk.
        disk_id: String,
        /// Writes are refused on the host's side.
        read_only: bool,
    },
    /// A share.
    Directory {
        /// Name of the share.
        share: String,
        /// The directory on the host.
        path: PathBuf,
        /// What is mounted there before.
        mounts: Vec<Mount>,
    },
}

/// Mounts that make no root file system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootfsError {
    /// A type that is not known here.
    #[error("root file system of mount type {0} is not supported")]
    Type(String),
    /// EROFS blobs mixed with others, or in the wrong order.
    #[error("root mount {0} does not fit: EROFS layers come first, then at most one overlay or tmpfs")]
    Order(usize),
    /// More than one message to the VMM carries.
    #[error("root file system has {0} layers, at most {MAX_LAYERS} are possible")]
    TooManyLayers(usize),
    /// A size that is none.
    #[error("option {0:?} of the writable layer is no size")]
    Size(String),
    /// A mount without a path.
    #[error("root mount {0} has no absolute source")]
    Source(usize),
    /// A mount that is not on the root itself.
    #[error("root mount {0} has the target {1:?}, which is not supported")]
    Target(usize, String),
    /// Ids that nobody would map.
    #[error(
        "the ids of a root file system of mount type {0} cannot be mapped; use the overlayfs snapshotter, or one that changes them in the files"
    )]
    IdMap(String),
    /// There is neither a mount nor a path.
    #[error("config.json has no root.path, and no root mounts were given")]
    NoRoot,
}

/// Sorts the mounts; a directory becomes a share, whose name begins with `prefix`.
pub(super) fn sort(
    mounts: &[Mount],
    root: &Root,
    bundle: &Path,
    prefix: &str,
    shares: &mut Vec<Share>,
) -> Result<RootfsPlan, RootfsError> {
    let is_mapped = |mount: &&Mount| mount.options.iter().any(|option| users::is_option(option));
    match mounts {
        [first, ..]
            if matches!(first.kind.as_str(), "erofs" | "ext4") && mounts.iter().any(|m| is_mapped(&m)) =>
        {
            return Err(RootfsError::IdMap(first.kind.clone()));
        }
        [first, ..] if first.kind == "erofs" => return layers(mounts, prefix),
        [only] if only.kind == "ext4" && only.target.is_empty() => return disk(only, prefix),
        _ => {}
    }
    if let Some((index, mount)) = mounts.iter().enumerate().find(|(_, mount)| !mount.target.is_empty()) {
        return Err(RootfsError::Target(index, harmless(&mount.target, 256)));
    }
    let path = match (mounts.is_empty(), root.path.is_empty()) {
        (true, true) => return Err(RootfsError::NoRoot),
        (true, false) => bundle.join(&root.path),
        (false, _) => bundle.join(ROOTFS_SHARE),
    };
    for mount in mounts {
        if !matches!(mount.kind.as_str(), "overlay" | "bind") {
            return Err(RootfsError::Type(harmless(&mount.kind, 32)));
        }
    }
    let read_only =
        root.readonly || mounts.last().is_some_and(|mount| mount.options.iter().any(|o| o == "ro"));
    let share = format!("{prefix}{ROOTFS_SHARE}");
    shares.insert(
        0,
        Share {
            name: share.clone(),
            source: path.clone(),
            read_only,
            submounts: Submounts::AsShare,
            // Its mounts have mapped them where they are.
            id_mapped: false,
        },
    );
    Ok(RootfsPlan::Directory { share, path, mounts: mounts.to_vec() })
}

fn disk_id(prefix: &str) -> String {
    format!("{prefix}{ROOTFS_SHARE}")
}

/// `loop` says how the host would use a file; here it is a disk either way.
fn disk(mount: &Mount, prefix: &str) -> Result<RootfsPlan, RootfsError> {
    if !mount.source.starts_with('/') {
        return Err(RootfsError::Source(0));
    }
    let read_only = mount.options.iter().any(|option| option == "ro");
    Ok(RootfsPlan::Disk { source: PathBuf::from(&mount.source), disk_id: disk_id(prefix), read_only })
}

fn layers(mounts: &[Mount], prefix: &str) -> Result<RootfsPlan, RootfsError> {
    let count = mounts.iter().take_while(|mount| mount.kind == "erofs").count();
    if count > MAX_LAYERS {
        return Err(RootfsError::TooManyLayers(count));
    }
    let (erofs, upper) = mounts.split_at(count);
    let upper_limit_bytes = match upper {
        [] => 0,
        [upper] if matches!(upper.kind.as_str(), "overlay" | "tmpfs") => size_option(&upper.options)?,
        _ => return Err(RootfsError::Order(count)),
    };
    let mut blobs = Vec::with_capacity(count);
    for (index, mount) in erofs.iter().enumerate() {
        if !mount.source.starts_with('/') {
            return Err(RootfsError::Source(index));
        }
        blobs.push(PathBuf::from(&mount.source));
    }
    Ok(RootfsPlan::Layers { blobs, disk_id: disk_id(prefix), upper_limit_bytes })
}

/// `size=` as tmpfs takes it: bytes, or with k, m or g.
fn size_option(options: &[String]) -> Result<u64, RootfsError> {
    let Some(text) = options.iter().rev().find_map(|option| option.strip_prefix("size=")) else {
        return Ok(0);
    };
    let error = || RootfsError::Size(harmless(text, 64));
    let (digits, unit) = match text.as_bytes().last().map(u8::to_ascii_lowercase) {
        Some(b'k') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm') => (&text[..text.len() - 1], 1 << 20),
        Some(b'g') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1_u64),
    };
    if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return Err(error());
    }
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(error)
}

/// Where each blob lies on the disk that has them end to end: offset and length of each.
pub fn lay_out(lengths: &[u64]) -> Option<Vec<(u64, u64)>> {
    let mut offset = 0_u64;
    lengths
        .iter()
        .map(|length| {
            let at = offset;
            offset = offset.checked_add(*length)?;
            Some((at, *length))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.into(),
            source: source.into(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    fn directory(mounts: Vec<Mount>) -> RootfsPlan {
        RootfsPlan::Directory { share: "rootfs".into(), path: "/bundle/rootfs".into(), mounts }
    }

    fn sorted(mounts: &[Mount]) -> Result<(RootfsPlan, Vec<Share>), RootfsError> {
        let root = Root { path: "rootfs".into(), readonly: false };
        let mut shares = Vec::new();
        sort(mounts, &root, Path::new("/bundle"), "", &mut shares).map(|plan| (plan, shares))
    }

    #[test]
    fn erofs_mounts_are_layers_in_their_order() {
        let (plan, shares) = sorted(&[mount("erofs", "/a", &["ro"]), mount("erofs", "/b", &["ro"])]).unwrap();
        let blobs = vec![PathBuf::from("/a"), PathBuf::from("/b")];
        let disk_id = "rootfs".into();
        assert_eq!(plan, RootfsPlan::Layers { blobs, disk_id, upper_limit_bytes: 0 });
        assert!(shares.is_empty());
    }

    #[test]
    fn size_of_the_upper_layer_is_read() {
        let (plan, _) = sorted(&[mount("erofs", "/a", &[]), mount("tmpfs", "tmpfs", &["size=64m"])]).unwrap();
        assert!(matches!(plan, RootfsPlan::Layers { upper_limit_bytes: 67_108_864, .. }));
    }

    #[test]
    fn bad_sizes_are_errors() {
        for bad in ["size=", "size=x", "size=-1", "size=1t", "size=18446744073709551615g", "size=é"] {
            assert!(sorted(&[mount("erofs", "/a", &[]), mount("tmpfs", "", &[bad])]).is_err(), "{bad}");
        }
    }

    #[test]
    fn overlay_snapshot_is_mounted_on_the_host_and_shared() {
        let overlay = mount("overlay", "overlay", &["lowerdir=/l", "upperdir=/u", "workdir=/w"]);
        let (plan, shares) = sorted(std::slice::from_ref(&overlay)).unwrap();
        assert_eq!(plan, directory(vec![overlay]));
        assert_eq!(
            shares[0],
            Share {
                name: "rootfs".into(),
                source: "/bundle/rootfs".into(),
                read_only: false,
                submounts: Submounts::AsShare,
                id_mapped: false,
            }
        );
    }

    #[test]
    fn no_mounts_mean_the_root_of_the_configuration() {
        let (plan, _) = sorted(&[]).unwrap();
        assert_eq!(plan, directory(vec![]));
    }

    #[test]
    fn layers_after_the_upper_one_and_foreign_types_are_refused() {
        let bad = [mount("erofs", "/a", &[]), mount("tmpfs", "", &[]), mount("erofs", "/b", &[])];
        assert_eq!(sorted(&bad), Err(RootfsError::Order(1)));
        assert_eq!(sorted(&[mount("xfs", "/dev/vda", &[])]), Err(RootfsError::Type("xfs".into())));
    }

    #[test]
    fn snapshot_of_a_block_snapshotter_is_a_disk_that_the_host_does_not_mount() {
        for (options, read_only) in [(&["loop", "rw"][..], false), (&["ro", "loop"], true), (&[], false)] {
            let (plan, shares) = sorted(&[mount("ext4", "/snapshots/7", options)]).unwrap();
            let (source, disk_id) = ("/snapshots/7".into(), "rootfs".into());
            assert_eq!(plan, RootfsPlan::Disk { source, disk_id, read_only });
            assert!(shares.is_empty());
        }
        assert_eq!(sorted(&[mount("ext4", "snapshots/7", &[])]), Err(RootfsError::Source(0)));
    }

    #[test]
    fn blob_without_an_absolute_path_is_refused() {
        assert_eq!(sorted(&[mount("erofs", "../a", &[])]), Err(RootfsError::Source(0)));
    }

    proptest! {
        #[test]
        fn layout_is_gapless(lengths in proptest::collection::vec(0u64..1 << 50, 0..20)) {
            let layers = lay_out(&lengths).unwrap();
            let mut end = 0;
            for (offset, length) in layers {
                prop_assert_eq!(offset, end);
                end = offset + length;
            }
        }
    }

    #[test]
    fn layout_that_overflows_is_none() {
        assert_eq!(lay_out(&[u64::MAX, 1, 1]), None);
    }
}
