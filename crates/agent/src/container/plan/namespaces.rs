//! `linux.namespaces`, id mappings and clock offsets.

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};
use serde::{Deserialize, Serialize};

use super::{FdRef, InvalidSpec};

/// CLONE_NEWTIME, which libc has as a c_int beyond the others.
pub(crate) const CLONE_NEWTIME: u64 = 0x80;
const CLONE_NEWUSER: u64 = libc::CLONE_NEWUSER as u64;

/// Most lines of a uid_map (user_namespaces(7)).
const MAX_ID_MAPS: usize = 340;

/// Longest text of one.
const MAX_MAP_BYTES: usize = 4095;

/// Namespaces of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamespacesPlan {
    /// CLONE_NEW* of those that are made new; CLONE_NEWNS always.
    pub(crate) new: u64,
    /// Those that are joined.
    pub(crate) join: Vec<JoinPlan>,
    pub(crate) uid_map: Vec<IdMap>,
    pub(crate) gid_map: Vec<IdMap>,
    /// Lines for timens_offsets.
    pub(crate) time_offsets: Vec<String>,
}

/// A namespace that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinPlan {
    /// Its CLONE_NEW* flag.
    pub(crate) kind: u64,
    /// Guest path of its file.
    pub(crate) path: String,
    pub(crate) fd: Option<FdRef>,
}

/// The maps of a user namespace, neither of them empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    pub(crate) uids: Vec<IdMap>,
    pub(crate) gids: Vec<IdMap>,
}

impl IdMaps {
    /// From lines of first id in the container, first id in the guest, and size; None where there are none.
    ///
    /// # Errors
    /// [`InvalidSpec::IdMap`] for maps that cannot be, or where one of the two is missing.
    pub fn new(
        uids: impl IntoIterator<Item = (u32, u32, u32)>,
        gids: impl IntoIterator<Item = (u32, u32, u32)>,
    ) -> Result<Option<Self>, InvalidSpec> {
        let (uids, gids) = (id_map(uids)?, id_map(gids)?);
        match (uids.is_empty(), gids.is_empty()) {
            (true, true) => Ok(None),
            (false, false) => Ok(Some(Self { uids, gids })),
            _ => Err(InvalidSpec::IdMap("a new user namespace needs both uid and gid mappings")),
        }
    }
}

/// One line of a uid_map or gid_map. Three numbers in orders: maps as long as the kernel takes them fit a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u32)", into = "(u32, u32, u32)")]
pub(crate) struct IdMap {
    pub(crate) container: u32,
    pub(crate) guest: u32,
    pub(crate) size: u32,
}

impl IdMap {
    /// The lines of a map as the kernel takes them (user_namespaces(7)).
    pub(crate) fn text(maps: &[Self]) -> String {
        maps.iter().map(|map| format!("{} {} {}\n", map.container, map.guest, map.size)).collect()
    }
}

impl From<(u32, u32, u32)> for IdMap {
    fn from((container, guest, size): (u32, u32, u32)) -> Self {
        Self { container, guest, size }
    }
}

impl From<IdMap> for (u32, u32, u32) {
    fn from(map: IdMap) -> Self {
        (map.container, map.guest, map.size)
    }
}

impl NamespacesPlan {
    pub(super) fn from_linux(linux: &Linux) -> Result<Self, InvalidSpec> {
        let mut plan = Self {
            new: libc::CLONE_NEWNS as u64,
            join: Vec::new(),
            uid_map: id_map(lines(linux.uid_mappings().as_deref()))?,
            gid_map: id_map(lines(linux.gid_mappings().as_deref()))?,
            time_offsets: time_offsets(linux)?,
        };
        let mut seen = 0;
        for namespace in linux.namespaces().as_deref().unwrap_or_default() {
            let kind = namespace.typ();
            let flag = flag(kind);
            let bad = |problem| InvalidSpec::Namespace { kind: kind.to_string(), problem };
            if seen & flag != 0 {
                return Err(bad("is named twice"));
            }
            seen |= flag;
            match namespace.path().as_ref().and_then(|path| path.to_str()).filter(|path| !path.is_empty()) {
                None => plan.new |= flag,
                Some(_) if kind == LinuxNamespaceType::Mount => {
                    return Err(bad("cannot be joined, since the root file system is its own"));
                }
                Some(path) => plan.join.push(JoinPlan { kind: flag, path: path.to_owned(), fd: None }),
            }
        }
        plan.check_id_maps()?;
        if !plan.time_offsets.is_empty() && plan.new & CLONE_NEWTIME == 0 {
            return Err(InvalidSpec::Unsupported("timeOffsets without a new time namespace".into()));
        }
        Ok(plan)
    }

    /// User and group that are root in the container, as the guest numbers them.
    pub(crate) fn root(&self) -> (u32, u32) {
        let of = |maps: &[IdMap]| maps.iter().find(|map| map.container == 0).map_or(0, |map| map.guest);
        (of(&self.uid_map), of(&self.gid_map))
    }

    fn check_id_maps(&self) -> Result<(), InvalidSpec> {
        let mapped = !self.uid_map.is_empty() && !self.gid_map.is_empty();
        let unmapped = self.uid_map.is_empty() && self.gid_map.is_empty();
        match self.new & CLONE_NEWUSER != 0 {
            true if !mapped => {
                Err(InvalidSpec::IdMap("a new user namespace needs both uid and gid mappings"))
            }
            // With a joined user namespace they only repeat what it has.
            false if !unmapped && !self.has(CLONE_NEWUSER) => {
                Err(InvalidSpec::IdMap("there are mappings, but no user namespace"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the container is in a namespace of this kind other than the agent's.
    pub(crate) fn has(&self, flag: u64) -> bool {
        self.new & flag != 0 || self.join.iter().any(|join| join.kind == flag)
    }

    /// CLONE_NEW* of every namespace that is not the agent's.
    pub(crate) fn all(&self) -> u64 {
        self.join.iter().fold(self.new, |all, join| all | join.kind)
    }

    /// Whether the container's root is not the guest's.
    pub(crate) fn has_user(&self) -> bool {
        self.has(CLONE_NEWUSER)
    }
}

fn flag(kind: LinuxNamespaceType) -> u64 {
    // The enum's values are the CLONE_NEW* flags.
    kind as u64
}

fn lines(maps: Option<&[LinuxIdMapping]>) -> impl Iterator<Item = (u32, u32, u32)> {
    maps.unwrap_or_default().iter().map(|map| (map.container_id(), map.host_id(), map.size()))
}

fn id_map(lines: impl IntoIterator<Item = (u32, u32, u32)>) -> Result<Vec<IdMap>, InvalidSpec> {
    let line = |(container, guest, size): (u32, u32, u32)| {
        if size == 0 || container.checked_add(size).is_none() || guest.checked_add(size).is_none() {
            return Err(InvalidSpec::IdMap("a line is empty or reaches beyond the last id"));
        }
        Ok(IdMap { container, guest, size })
    };
    let maps: Vec<IdMap> = lines.into_iter().take(MAX_ID_MAPS + 1).map(line).collect::<Result<_, _>>()?;
    if maps.len() > MAX_ID_MAPS {
        return Err(InvalidSpec::IdMap("more than 340 lines"));
    }
    if IdMap::text(&maps).len() > MAX_MAP_BYTES {
        return Err(InvalidSpec::IdMap("more text than the kernel takes, which is a page"));
    }
    Ok(maps)
}

fn time_offsets(linux: &Linux) -> Result<Vec<String>, InvalidSpec> {
    let Some(offsets) = linux.time_offsets() else { return Ok(Vec::new()) };
    let mut lines = Vec::new();
    for (clock, offset) in offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(InvalidSpec::Unsupported(format!("a time offset of clock {clock:?}")));
        }
        lines.push(format!("{clock} {} {}", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0)));
    }
    Ok(lines)
}
