//! `nacre rmi`: takes names off images, and images out of the store.

use std::path::Path;

use anyhow::Result;
use nacre_image::Removed;

use crate::record::Records;
use crate::store;

pub(super) fn run(root: &Path, name: &str, force: bool) -> Result<String> {
    let store = store::open(root)?;
    store::sweep_leases(&store, &Records::open(root)?)?;
    Ok(lines(&store.remove(name, force)?).join("\n"))
}

/// The steps as Docker prints them.
pub(super) fn lines(removed: &[Removed]) -> Vec<String> {
    let line = |step: &Removed| match step {
        Removed::Untagged(name) => format!("Untagged: {}", name.familiar()),
        Removed::Image(id) => format!("Deleted: {id}"),
        Removed::Layer(id) => format!("Deleted: {id}"),
    };
    removed.iter().map(line).collect()
}
