//! User namespaces: which ids of a container are which of its guest, and so of its files on the host.
//!
//! A container in a user namespace has the same ids in its guest as a container of the host would have there. Its root file system
//! has them already, by [`mounts`]; a volume whose mount asks for it is served with its ids mapped
//! ([`nacre_protocol::fs::Share::user_namespace`]).

pub(crate) mod mounts;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use nacre_protocol::rpc::agent::IdMapping;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::process::Child;
use crate::sys;

/// Most lines of a map (user_namespaces(7)).
const MAX_LINES: usize = 340;

/// What the kernel shows for an id that has no counterpart (`/proc/sys/kernel/overflowuid`).
const OVERFLOW: u32 = 65_534;

/// Ids that follow each other (OCI runtime specification, "User namespace mappings").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First of them in the container.
    #[serde(rename = "containerID")]
    pub container: u32,
    /// First of them outside of it.
    #[serde(rename = "hostID")]
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// The maps of a user namespace, neither of them empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    uids: Vec<IdMap>,
    gids: Vec<IdMap>,
}

/// Maps that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdMapError {
    /// One of the two is missing.
    #[error("a user namespace needs both uid and gid mappings")]
    Missing,
    /// The kernel takes no more.
    #[error("{0} lines of id mappings are more than {MAX_LINES}")]
    TooMany(usize),
    /// A line.
    #[error("an id mapping is empty or reaches beyond the last id")]
    Line,
    /// Text that is no map.
    #[error("an id mapping is not of the form container:host:size")]
    Text,
}

impl IdMaps {
    /// Checks maps; None where there are none.
    ///
    /// # Errors
    /// See [`IdMapError`].
    pub fn new(uids: Vec<IdMap>, gids: Vec<IdMap>) -> Result<Option<Self>, IdMapError> {
        match (uids.is_empty(), gids.is_empty()) {
            (true, true) => return Ok(None),
            (false, false) => {}
            _ => return Err(IdMapError::Missing),
        }
        for maps in [&uids, &gids] {
            if maps.len() > MAX_LINES {
                return Err(IdMapError::TooMany(maps.len()));
            }
            let fits = |first: u32, size: u32| first.checked_add(size).is_some();
            if !maps
                .iter()
                .all(|map| map.size > 0 && fits(map.container, map.size) && fits(map.host, map.size))
            {
                return Err(IdMapError::Line);
            }
        }
        Ok(Some(Self { uids, gids }))
    }

    /// Takes containerd's `uidmap=` and `gidmap=` out of the options of a mount: lists of `container:host:size`.
    ///
    /// # Errors
    /// See [`IdMapError`].
    pub fn from_options(options: &[String]) -> Result<Option<Self>, IdMapError> {
        let list = |key: &str| -> Result<Vec<IdMap>, IdMapError> {
            let lists = options.iter().filter_map(|option| option.strip_prefix(key));
            lists.flat_map(|list| list.split(',')).map(line).collect()
        };
        Self::new(list("uidmap=")?, list("gidmap=")?)
    }

    /// What a user of the container is outside.
    pub fn uid(&self, container: u32) -> u32 {
        outside(&self.uids, container)
    }

    /// What a group of the container is outside.
    pub fn gid(&self, container: u32) -> u32 {
        outside(&self.gids, container)
    }

    /// For the agent: uids, then gids.
    pub fn to_agent(&self) -> (Vec<IdMapping>, Vec<IdMapping>) {
        let line = |map: &IdMap| {
            let IdMap { container, host: guest, size } = *map;
            IdMapping { container, guest, size, ..IdMapping::default() }
        };
        (self.uids.iter().map(line).collect(), self.gids.iter().map(line).collect())
    }

    /// As a configuration has them: `uidMappings`, then `gidMappings`.
    pub(crate) fn to_document(&self) -> (Value, Value) {
        (json!(self.uids), json!(self.gids))
    }

    /// A user namespace of the host with these maps, in which nobody is.
    ///
    /// # Errors
    /// What the kernel says, of maps that overlap say.
    pub fn namespace(&self) -> io::Result<OwnedFd> {
        // A namespace comes to be with a process in it, which is not needed once the file is open.
        let holder = Child::new(sys::spawn_in_user_namespace()?);
        let dir = format!("/proc/{}", holder.pid());
        for (file, maps) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            let line = |map: &IdMap| format!("{} {} {}\n", map.container, map.host, map.size);
            std::fs::write(format!("{dir}/{file}"), maps.iter().map(line).collect::<String>())?;
        }
        Ok(File::open(format!("{dir}/ns/user"))?.into())
    }
}

/// Whether an option of a mount is one of [`IdMaps::from_options`].
pub(crate) fn is_option(option: &str) -> bool {
    option.starts_with("uidmap=") || option.starts_with("gidmap=")
}

fn outside(maps: &[IdMap], id: u32) -> u32 {
    let found = maps.iter().find_map(|map| {
        let at = id.checked_sub(map.container).filter(|at| *at < map.size)?;
        map.host.checked_add(at)
    });
    found.unwrap_or(OVERFLOW)
}

fn line(text: &str) -> Result<IdMap, IdMapError> {
    let mut numbers = text.split(':').map(|number| number.parse::<u32>().map_err(|_| IdMapError::Text));
    let mut next = || numbers.next().unwrap_or(Err(IdMapError::Text));
    let map = IdMap { container: next()?, host: next()?, size: next()? };
    if numbers.next().is_some() { Err(IdMapError::Text) } else { Ok(map) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(of: &[&str]) -> Vec<String> {
        of.iter().map(|option| (*option).to_owned()).collect()
    }

    #[test]
    fn options_of_a_mount_are_maps_and_map_ids() {
        let maps = IdMaps::from_options(&options(&["uidmap=0:1000:10,10:5000:1", "rw", "gidmap=0:2000:10"]))
            .unwrap()
            .unwrap();
        assert_eq!((maps.uid(0), maps.uid(9), maps.uid(10), maps.uid(11)), (1000, 1009, 5000, OVERFLOW));
        assert_eq!((maps.gid(3), maps.gid(10)), (2003, OVERFLOW));
        assert_eq!(IdMaps::from_options(&options(&["rw", "lowerdir=/a"])), Ok(None));
    }

    #[test]
    fn maps_that_cannot_be_are_refused() {
        for (given, error) in [
            (&["uidmap=0:1:1"][..], IdMapError::Missing),
            (&["uidmap=", "gidmap=0:1:1"], IdMapError::Text),
            (&["uidmap=0:1", "gidmap=0:1:1"], IdMapError::Text),
            (&["uidmap=0:1:1:1", "gidmap=0:1:1"], IdMapError::Text),
            (&["uidmap=0:-1:1", "gidmap=0:1:1"], IdMapError::Text),
            (&["uidmap=0:1:0", "gidmap=0:1:1"], IdMapError::Line),
            (&["uidmap=0:4294967295:1", "gidmap=0:1:1"], IdMapError::Line),
        ] {
            assert_eq!(IdMaps::from_options(&options(given)), Err(error), "{given:?}");
        }
        let many = vec![IdMap { container: 0, host: 1, size: 1 }; MAX_LINES + 1];
        assert_eq!(IdMaps::new(many.clone(), many), Err(IdMapError::TooMany(341)));
    }

    #[test]
    fn namespace_has_the_maps_and_nobody_in_it() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a map of any ids needs root");
            return;
        }
        let line = |host| vec![IdMap { container: 0, host, size: 65_536 }];
        let maps = IdMaps::new(line(100_000), line(200_000)).unwrap().unwrap();
        let namespace = maps.namespace().unwrap();
        assert_ne!(rustix::fs::fstat(&namespace).unwrap().st_ino, {
            rustix::fs::stat("/proc/self/ns/user").unwrap().st_ino
        });
        // The same ids twice.
        let twice = [line(100_000), line(100_000)].concat();
        assert!(IdMaps::new(twice.clone(), twice).unwrap().unwrap().namespace().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_map_or_an_error(text in "[0-9:,a]{0,40}") {
            let given = [format!("uidmap={text}"), "gidmap=0:1:1".to_owned()];
            if let Ok(Some(maps)) = IdMaps::from_options(&given) {
                prop_assert!(maps.uids.iter().all(|map| maps.uid(map.container) != OVERFLOW || map.host <= OVERFLOW));
            }
        }
    }
}
