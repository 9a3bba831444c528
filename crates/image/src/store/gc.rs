//! Removal: `rmi` with Docker's rules, and `prune`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::files;
use super::record::names_of;
use super::{ImageRecord, NameRecord, Store, StoreError};
use crate::digest::{Algorithm, Digest};
use crate::reference::Reference;

/// One step of a removal, as `docker rmi` prints them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// An image lost a name.
    Untagged(Reference),
    /// An image is gone.
    Image(Digest),
    /// A layer is gone.
    Layer(Digest),
}

/// What `prune` may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PruneOptions {
    /// All images that no container uses, not only those without a tag.
    pub all: bool,
}

/// Result of `prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The steps.
    pub removed: Vec<Removed>,
    /// Bytes that came free.
    pub freed_bytes: u64,
}

impl Store {
    /// Removes a name, or an image by its id (`docker rmi`).
    ///
    /// The last name takes the image with it. An image that a container uses keeps its last name, one with names
    /// in several repositories is not removed by id, unless forced. Forced, an image in use loses its names and
    /// stays until its containers are gone.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::InUse`], [`StoreError::SeveralNames`].
    pub fn remove(&self, text: &str, force: bool) -> Result<Vec<Removed>, StoreError> {
        let _lock = self.lock()?;
        let id = self.resolve(text)?.ok_or_else(|| StoreError::NotFound(text.to_owned()))?;
        let names = names_of(&self.name_records()?, &id);
        let by_name = text.parse::<Reference>().ok().filter(|name| names.contains(name));
        let (doomed, last) = match &by_name {
            Some(name) => {
                let doomed = with_orphaned_digests(name, &names);
                let last = doomed.len() == names.len();
                (doomed, last)
            }
            None => (names.clone(), true),
        };
        let repositories: BTreeSet<String> = names.iter().map(Reference::repository).collect();
        if by_name.is_none() && repositories.len() > 1 && !force {
            return Err(StoreError::SeveralNames(id));
        }
        let user = self.leases()?.into_iter().find(|lease| lease.image == id);
        if let (true, false, Some(lease)) = (last, force, &user) {
            return Err(StoreError::InUse { image: id, container: lease.container.clone() });
        }
        let mut removed = Vec::new();
        for name in doomed {
            files::remove(&self.name_path(&name))?;
            removed.push(Removed::Untagged(name));
        }
        if last && user.is_none() {
            self.remove_image(&id, &mut removed)?;
            self.remove_loose(&mut removed)?;
        }
        Ok(removed)
    }

    /// Removes images that nobody needs, loose layers and what dead processes left.
    ///
    /// # Errors
    /// Where a record cannot be read or a file not removed; what is gone by then stays gone.
    pub fn prune(&self, options: PruneOptions) -> Result<Pruned, StoreError> {
        let mut freed_bytes = self.sweep()?;
        let _lock = self.lock()?;
        let names = self.name_records()?;
        let used: BTreeSet<Digest> = self.leases()?.into_iter().map(|lease| lease.image).collect();
        let mut removed = Vec::new();
        for id in self.image_ids()? {
            let own = names_of(&names, &id);
            let tagged = own.iter().any(|name| name.tag().is_some());
            if used.contains(&id) || (tagged && !options.all) {
                continue;
            }
            for name in own {
                files::remove(&self.name_path(&name))?;
                removed.push(Removed::Untagged(name));
            }
            self.remove_image(&id, &mut removed)?;
        }
        freed_bytes += self.remove_loose(&mut removed)?;
        Ok(Pruned { removed, freed_bytes })
    }

    fn remove_image(&self, id: &Digest, removed: &mut Vec<Removed>) -> Result<(), StoreError> {
        files::remove(&self.image_path(id))?;
        removed.push(Removed::Image(id.clone()));
        Ok(())
    }

    /// Removes layers and documents that no image, container or pull counts on; returns the bytes freed.
    fn remove_loose(&self, removed: &mut Vec<Removed>) -> Result<u64, StoreError> {
        let (layers, documents) = self.needed()?;
        let mut freed = 0;
        for (digest, paths) in self.stored("layers")? {
            if !layers.contains(&digest) {
                freed += remove_all(&paths)?;
                removed.push(Removed::Layer(digest));
            }
        }
        for (digest, paths) in self.stored("blobs")? {
            if !documents.contains(&digest) {
                freed += remove_all(&paths)?;
            }
        }
        Ok(freed)
    }

    /// Layers and documents that are counted on.
    fn needed(&self) -> Result<(BTreeSet<Digest>, BTreeSet<Digest>), StoreError> {
        let mut layers: BTreeSet<Digest> = self.layers_of_pulls()?.into_iter().collect();
        let mut documents = BTreeSet::new();
        for id in self.image_ids()? {
            let Some(ImageRecord { id, manifest_digest, layers: own, .. }) = self.image_record(&id)? else {
                continue;
            };
            layers.extend(own.into_iter().map(|layer| layer.diff_id));
            documents.insert(id);
            documents.extend(manifest_digest);
        }
        for lease in self.leases()? {
            layers.extend(lease.layers);
        }
        documents.extend(self.name_records()?.into_iter().filter_map(|NameRecord { target, .. }| target));
        Ok((layers, documents))
    }

    /// The files of `layers/` or `blobs/` by digest. Files whose names are no digests are not ours: left alone.
    fn stored(&self, kind: &str) -> Result<BTreeMap<Digest, Vec<std::path::PathBuf>>, StoreError> {
        let mut stored: BTreeMap<Digest, Vec<_>> = BTreeMap::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let name = algorithm.as_str();
            for path in files::list_dir(&self.root.join(kind).join(name))? {
                let hex = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
                if let Ok(digest) = format!("{name}:{hex}").parse() {
                    stored.entry(digest).or_default().push(path);
                }
            }
        }
        Ok(stored)
    }
}

/// The name, and with the last tag of a repository its digests there, as Docker does.
fn with_orphaned_digests(name: &Reference, names: &[Reference]) -> Vec<Reference> {
    let mut doomed = vec![name.clone()];
    let same_repository = |other: &&Reference| *other != name && other.repository() == name.repository();
    let others: Vec<&Reference> = names.iter().filter(same_repository).collect();
    if name.tag().is_some() && others.iter().all(|other| other.tag().is_none()) {
        doomed.extend(others.into_iter().cloned());
    }
    doomed
}

fn remove_all(paths: &[std::path::PathBuf]) -> Result<u64, StoreError> {
    let mut freed = 0;
    for path in paths {
        freed += fs::symlink_metadata(path).map(|data| data.len()).unwrap_or(0);
        files::remove(path)?;
    }
    Ok(freed)
}
