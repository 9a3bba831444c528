//! Bind mounts of the host's device nodes (hostPath of type CharDevice or BlockDevice).
//!
//! A node is a number, and a number means what its kernel has there. A block device becomes a disk of the VM, as a raw block
//! volume does. Of character devices a container gets those that its guest has itself, under numbers that are the same in
//! every Linux (Documentation/admin-guide/devices.txt); the others are drivers of the host, and are refused.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::{Value, json};

use super::devices::BlockDevice;
use super::mounts::MountError;
use crate::text::harmless;

/// Where device nodes are. Nothing else is looked at here: what is elsewhere may be on a file system that hangs.
const DEVICES: &str = "/dev";

/// Character devices that the guest's kernel has: name below `/dev`, numbers, and whether every container has it anyway.
const OF_GUEST: [(&str, u32, u32, bool); 8] = [
    ("null", 1, 3, true),
    ("zero", 1, 5, true),
    ("full", 1, 7, true),
    ("random", 1, 8, true),
    ("urandom", 1, 9, true),
    ("tty", 5, 0, true),
    ("fuse", 10, 229, false),
    ("net/tun", 10, 200, false),
];

/// What stands in for a device node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// One of the guest's own, as an entry of `linux.devices`.
    OfGuest(Value),
    /// It is there already.
    Present,
    /// A disk of the VM.
    Disk(BlockDevice),
}

/// The node that a bind mount's source is; none: it is no device node. `disk_id` would be its disk's serial.
pub(super) fn take(
    source: &Path,
    destination: &str,
    read_only: bool,
    disk_id: String,
) -> Result<Option<Node>, MountError> {
    let Ok(name) = source.strip_prefix(DEVICES) else { return Ok(None) };
    if let Some(&(name, major, minor, everywhere)) = OF_GUEST.iter().find(|found| Path::new(found.0) == name)
    {
        if everywhere && destination == format!("{DEVICES}/{name}") {
            return Ok(Some(Node::Present));
        }
        let mode = 0o666;
        let node =
            json!({"path": destination, "type": "c", "major": major, "minor": minor, "fileMode": mode});
        return Ok(Some(Node::OfGuest(node)));
    }
    // What is missing is told by whoever opens it.
    let Ok(found) = source.metadata() else { return Ok(None) };
    let kind = found.file_type();
    if kind.is_char_device() {
        return Err(MountError::CharDevice { path: harmless(&source.to_string_lossy(), 256) });
    }
    Ok(kind.is_block_device().then(|| Node::Disk(disk(&found, destination, read_only, disk_id))))
}

fn disk(found: &Metadata, path: &str, read_only: bool, disk_id: String) -> BlockDevice {
    let number = found.rdev();
    BlockDevice {
        disk_id,
        path: path.to_owned(),
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
        mode: found.permissions().mode() & 0o777,
        uid: found.uid(),
        gid: found.gid(),
        read_only,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(source: &str, destination: &str) -> Result<Option<Node>, MountError> {
        take(Path::new(source), destination, false, "m0".into())
    }

    #[test]
    fn devices_of_every_container_are_there_and_others_of_the_guest_are_made() {
        assert_eq!(node("/dev/null", "/dev/null"), Ok(Some(Node::Present)));
        let fuse = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666});
        assert_eq!(node("/dev/fuse", "/dev/fuse"), Ok(Some(Node::OfGuest(fuse))));
        let null = json!({"path": "/x", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666});
        assert_eq!(node("/dev/null", "/x"), Ok(Some(Node::OfGuest(null))));
    }

    #[test]
    fn other_character_devices_are_refused_and_files_are_none() {
        // Every Linux has it, and no guest of ours should be given the host's.
        let error = node("/dev/kmsg", "/dev/kmsg").unwrap_err().to_string();
        assert!(error.starts_with("/dev/kmsg is a character device of the host"), "{error}");
        assert_eq!(node("/dev/shm", "/x"), Ok(None));
        assert_eq!(node("/dev/missing", "/x"), Ok(None));
        assert_eq!(node("/srv/null", "/x"), Ok(None));
    }
}
