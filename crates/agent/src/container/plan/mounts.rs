//! `mounts` of a configuration: options into attributes and file system parameters.

use oci_spec::runtime::Mount;
use serde::{Deserialize, Serialize};

use super::{FdRef, InvalidSpec, clean};
use crate::container::sys::mount::{
    ATTR_ATIME_MASK, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID, ATTR_NOSYMFOLLOW,
    ATTR_RDONLY, ATTR_STRICTATIME, MountAttr,
};

/// Most mounts of one container: every bind mount is a descriptor of one message.
pub(crate) const MAX_MOUNTS: usize = 200;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountPlan {
    /// Cleaned path in the container.
    pub(crate) destination: String,
    pub(crate) source: MountSource,
    /// For the mount itself.
    pub(crate) attr: MountAttr,
    /// For the mount and all below it (`rro` and the like, `rprivate` and the like).
    pub(crate) recursive_attr: MountAttr,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MountSource {
    /// A file or directory of the guest, which the agent opens for the child.
    Bind { path: String, recursive: bool, fd: Option<FdRef> },
    /// A new instance of a file system.
    Filesystem {
        kind: String,
        source: String,
        /// Parameters of fsconfig(2): flags have no value.
        parameters: Vec<(String, Option<String>)>,
        /// What the image has at the destination is copied in.
        copy_up: bool,
    },
    /// The container's own cgroup tree: a new cgroup2 mount in its namespace; a bind of `fd` where it has none.
    Cgroup { fd: Option<FdRef> },
}

pub(super) fn from_spec(mounts: &[Mount]) -> Result<Vec<MountPlan>, InvalidSpec> {
    if mounts.len() > MAX_MOUNTS {
        return Err(InvalidSpec::Unsupported(format!("more than {MAX_MOUNTS} mounts")));
    }
    mounts.iter().map(from_mount).collect()
}

fn from_mount(mount: &Mount) -> Result<MountPlan, InvalidSpec> {
    let destination = clean("mount destination", mount.destination())?;
    let bad = |problem: String| InvalidSpec::Mount { destination: destination.clone(), problem };
    if destination == "/" {
        return Err(bad("the root file system cannot be mounted over".into()));
    }
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(bad("id-mapped mounts are not supported".into()));
    }
    let mut options = Options::default();
    for option in mount.options().as_deref().unwrap_or_default() {
        options.add(option).map_err(&bad)?;
    }
    let kind = mount.typ().as_deref().unwrap_or_default();
    let source = mount.source().as_ref().map(|source| source.to_string_lossy().into_owned());
    let source = if options.bind.is_some() || kind == "bind" {
        let path = source.ok_or_else(|| bad("a bind mount needs a source".into()))?;
        // "bind" may be said by the type alone; it is then not recursive.
        MountSource::Bind { path, recursive: options.bind.unwrap_or(false), fd: None }
    } else {
        match kind {
            "" | "none" => return Err(bad("it has no file system type and is no bind mount".into())),
            "cgroup" | "cgroup2" => MountSource::Cgroup { fd: None },
            kind => MountSource::Filesystem {
                kind: kind.to_owned(),
                source: source.unwrap_or_else(|| kind.to_owned()),
                parameters: options.parameters,
                copy_up: options.copy_up,
            },
        }
    };
    Ok(MountPlan { destination, source, attr: options.attr, recursive_attr: options.recursive_attr })
}

#[derive(Default)]
struct Options {
    attr: MountAttr,
    recursive_attr: MountAttr,
    /// Some(recursive)
    bind: Option<bool>,
    parameters: Vec<(String, Option<String>)>,
    copy_up: bool,
}

impl Options {
    fn add(&mut self, option: &str) -> Result<(), String> {
        if option.len() >= 4096 || option.contains('\0') {
            return Err("an option is too long or has a NUL".into());
        }
        match option {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "tmpcopyup" => self.copy_up = true,
            // What the kernel does anyway, or what only libmount knows.
            "defaults" | "remount" | "async" | "mand" | "nomand" | "silent" | "loud" | "nofail" | "auto"
            | "noauto" | "user" | "nouser" | "_netdev" => {}
            "idmap" | "ridmap" => return Err("id-mapped mounts are not supported".into()),
            _ => self.add_flag(option),
        }
        Ok(())
    }

    fn add_flag(&mut self, option: &str) {
        if let Some((set, clear)) = attribute(option) {
            self.attr.apply(set, clear);
        } else if let Some((set, clear)) = option.strip_prefix('r').and_then(attribute) {
            self.recursive_attr.apply(set, clear);
        } else if let Some(propagation) = propagation(option) {
            self.attr.propagation = propagation;
        } else if let Some(propagation) = option.strip_prefix('r').and_then(propagation) {
            self.recursive_attr.propagation = propagation;
        } else {
            let (key, value) = match option.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (option, None),
            };
            self.parameters.push((key.to_owned(), value));
        }
    }
}

impl MountAttr {
    /// The later option wins.
    fn apply(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
    }
}

/// Attributes that an option (OCI runtime specification, config.md, "Linux mount options") sets and clears.
fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (ATTR_RDONLY, 0),
        "rw" => (0, ATTR_RDONLY),
        "nosuid" => (ATTR_NOSUID, 0),
        "suid" => (0, ATTR_NOSUID),
        "nodev" => (ATTR_NODEV, 0),
        "dev" => (0, ATTR_NODEV),
        "noexec" => (ATTR_NOEXEC, 0),
        "exec" => (0, ATTR_NOEXEC),
        "nodiratime" => (ATTR_NODIRATIME, 0),
        "diratime" => (0, ATTR_NODIRATIME),
        "nosymfollow" => (ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, ATTR_NOSYMFOLLOW),
        // The access time is one field: mount_setattr(2) wants all of it cleared with each mode; relatime is 0.
        "noatime" => (ATTR_NOATIME, ATTR_ATIME_MASK),
        "strictatime" => (ATTR_STRICTATIME, ATTR_ATIME_MASK),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, ATTR_ATIME_MASK),
        _ => return None,
    })
}

/// Propagation type of a word without its `r`.
pub(super) fn propagation(word: &str) -> Option<u64> {
    Some(match word {
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    })
}
