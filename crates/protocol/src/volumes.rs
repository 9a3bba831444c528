//! Volumes that cross to the guest by value: configMap, secret, projected and downward API.
//!
//! A program that waits for a new configuration watches such a volume with inotify, and virtio-fs has no notice of what
//! the host changes. So the host reads these volumes, which are small and that the container cannot write to, and the agent
//! keeps a copy on a tmpfs of the guest, which it changes in the order in which a kubelet does: what is new, the exchange of
//! `..data`, what is old. The source of such a mount is [`VOLUMES_DIR`]`/<name>`, and the name is that of a
//! [`crate::files::FileName`].

/// Directory that a mount's source names for such a volume. No such directory needs to exist.
pub const VOLUMES_DIR: &str = "/run/nacre/volumes";

/// Most entries of one volume.
pub const MAX_ENTRIES: usize = 1024;

/// Most bytes of one volume's files together: all of it crosses in one message of at most 4 MiB.
pub const MAX_BYTES: usize = 3 << 20;

/// Most bytes of all paths and link targets of one volume together.
pub const MAX_NAME_BYTES: usize = 256 << 10;

/// Longest path of an entry, and longest target of a link.
pub const MAX_PATH: usize = 1024;

/// The link that a kubelet exchanges to change all files of a volume at once.
pub const DATA: &str = "..data";
