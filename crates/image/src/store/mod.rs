//! The content store: what images are here, and their layers as EROFS blobs.
//!
//! ```text
//! ROOT/version              "1"
//! ROOT/lock                 flock, held for moments while records change, never while data moves
//! ROOT/names/HASH.json      one image name -> image id           (HASH: sha256 of the canonical name)
//! ROOT/images/HEX.json      one image: configuration and layers  (HEX: its id, the configuration's sha256)
//! ROOT/blobs/ALG/HEX        manifests and configurations as they came
//! ROOT/layers/ALG/HEX.erofs one layer                            (HEX: its diff id)
//! ROOT/layers/ALG/HEX.json  its length and digest
//! ROOT/leases/HASH.json     a container and the image it needs
//! ROOT/pulls/               a file for each pull under way, locked by it: the layers it will need
//! ROOT/tmp/                 files being written, locked by their writers
//! ```
//!
//! To run an image costs two small reads: its name and its record. Directories are 0700 and files 0600. Every
//! file appears by rename when it is whole and verified, so a process that dies leaves nothing but files in
//! `tmp/` and `pulls/` that the next pull sweeps. No path is ever made of text that an image or registry chose,
//! other than checked digests, and nothing is removed recursively.

mod error;
mod files;
mod gc;
mod inspect;
mod lease;
mod record;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{env, process};

pub use error::StoreError;
pub(crate) use error::is_disk_full;
pub(crate) use files::TempFile;
pub use gc::{PruneOptions, Pruned, Removed};
pub use lease::Lease;
pub(crate) use lease::PullLease;
pub use record::{Image, ImageSummary, LayerBlob};
pub(crate) use record::{ImageRecord, LayerMeta, LayerRecord, NameRecord, path_bytes};

use crate::digest::Digest;
use crate::layer::LayerSummary;
use crate::reference::Reference;

const VERSION: &str = "1";

const DIRS: [&str; 9] = [
    "names",
    "images",
    "blobs/sha256",
    "blobs/sha512",
    "layers/sha256",
    "layers/sha512",
    "leases",
    "pulls",
    "tmp",
];

/// An open store. Cheap to clone; holds no descriptor.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Exclusive right to change records; ends when dropped.
pub(crate) struct StoreLock(#[expect(dead_code, reason = "the lock lives as long as the file is open")] File);

impl Store {
    /// `/var/lib/nacre` for root, `$XDG_DATA_HOME/nacre` or `~/.local/share/nacre` for others.
    ///
    /// # Errors
    /// [`StoreError::NoHome`] where a user has neither variable.
    pub fn default_root() -> Result<PathBuf, StoreError> {
        if nix::unistd::geteuid().is_root() {
            return Ok("/var/lib/nacre".into());
        }
        let variable = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        variable("XDG_DATA_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
            .map(|data| data.join("nacre"))
            .ok_or(StoreError::NoHome)
    }

    /// Opens the store at `root`, and makes it where there is none.
    ///
    /// # Errors
    /// Where it cannot be made, belongs to another user, or has another version.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self { root: root.into() };
        let version_file = store.root.join("version");
        match fs::read_to_string(&version_file) {
            Ok(version) => {
                store.check_owner()?;
                store.check_version(version.trim())?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => store.create(&version_file)?,
            Err(error) => return Err(StoreError::io("read", &version_file, error)),
        }
        Ok(store)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn create(&self, version_file: &Path) -> Result<(), StoreError> {
        files::make_dir(&self.root)?;
        self.check_owner()?;
        for dir in DIRS {
            files::make_dir(&self.root.join(dir))?;
        }
        // Last, so that a store with a version has all its directories.
        files::write_file(&self.tmp_dir(), version_file, format!("{VERSION}\n").as_bytes())
    }

    /// The root must be ours and closed to others; one that others may enter is closed now.
    fn check_owner(&self) -> Result<(), StoreError> {
        let failed = |error| StoreError::io("examine", &self.root, error);
        let data = fs::metadata(&self.root).map_err(failed)?;
        if data.uid() != nix::unistd::geteuid().as_raw() {
            return Err(StoreError::Owner { root: self.root.clone(), owner: data.uid() });
        }
        if data.mode() & 0o077 != 0 {
            fs::set_permissions(&self.root, Permissions::from_mode(0o700)).map_err(failed)?;
        }
        Ok(())
    }

    fn check_version(&self, found: &str) -> Result<(), StoreError> {
        if found == VERSION {
            return Ok(());
        }
        let found = found.chars().take(16).collect();
        Err(StoreError::Version { root: self.root.clone(), found, known: VERSION })
    }

    /// Removes what processes that died have left.
    pub(crate) fn sweep(&self) -> Result<u64, StoreError> {
        Ok(files::sweep(&self.tmp_dir())? + files::sweep(&self.root.join("pulls"))?)
    }

    pub(crate) fn lock(&self) -> Result<StoreLock, StoreError> {
        let path = self.root.join("lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = open.map_err(|error| StoreError::io("open", &path, error))?;
        file.lock().map_err(|error| StoreError::io("lock", &path, error))?;
        Ok(StoreLock(file))
    }

    pub(crate) fn tmp_dir(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn image_path(&self, id: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", id.hex()))
    }

    fn name_path(&self, name: &Reference) -> PathBuf {
        let hash = Digest::sha256(name.to_string().as_bytes());
        self.root.join("names").join(format!("{}.json", hash.hex()))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// Path of a layer's EROFS blob, there or not.
    pub(crate) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.layer_file(diff_id, "erofs")
    }

    fn layer_file(&self, diff_id: &Digest, kind: &str) -> PathBuf {
        self.root.join("layers").join(diff_id.algorithm().as_str()).join(format!("{}.{kind}", diff_id.hex()))
    }
}

// Finding.
impl Store {
    /// Finds an image by name, id, or unique beginning of an id, ready to run: its layers have been looked at.
    ///
    /// # Errors
    /// [`StoreError::AmbiguousId`], [`StoreError::LayerMissing`], or a damaged record.
    pub fn find(&self, text: &str) -> Result<Option<Image>, StoreError> {
        match self.resolve(text)? {
            Some(id) => self.image(&id),
            None => Ok(None),
        }
    }

    /// The image of this id, ready to run.
    ///
    /// # Errors
    /// [`StoreError::LayerMissing`], or a damaged record.
    pub fn image(&self, id: &Digest) -> Result<Option<Image>, StoreError> {
        let Some(record) = self.image_record(id)? else { return Ok(None) };
        let hidden = record.layers.iter().rposition(|layer| layer.root_opaque).unwrap_or(0);
        let mut layers = Vec::with_capacity(record.layers.len());
        for layer in record.layers.iter().skip(hidden) {
            let missing = || StoreError::LayerMissing { image: id.clone(), diff_id: layer.diff_id.clone() };
            layers.push(self.look_at(layer).ok_or_else(missing)?);
        }
        Ok(Some(Image {
            id: record.id,
            manifest_digest: record.manifest_digest,
            config: record.config,
            layers,
        }))
    }

    /// The id that a name, id or beginning of an id stands for.
    pub(crate) fn resolve(&self, text: &str) -> Result<Option<Digest>, StoreError> {
        if let Ok(id) = text.parse::<Digest>() {
            return Ok(self.image_path(&id).exists().then_some(id));
        }
        if let Ok(name) = text.parse::<Reference>()
            && let Some(record) = self.name_record(&name)?
        {
            return Ok(Some(record.image));
        }
        self.resolve_prefix(text)
    }

    fn resolve_prefix(&self, text: &str) -> Result<Option<Digest>, StoreError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        if digits.is_empty() || digits.len() > 64 || !digits.bytes().all(hex) {
            return Ok(None);
        }
        let mut found = self.image_ids()?.into_iter().filter(|id| id.hex().starts_with(digits));
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(StoreError::AmbiguousId(text.to_owned())),
            (first, _) => Ok(first),
        }
    }

    /// Ids of all images.
    pub(crate) fn image_ids(&self) -> Result<Vec<Digest>, StoreError> {
        let paths = files::list_dir(&self.root.join("images"))?;
        let id = |path: &PathBuf| format!("sha256:{}", path.file_stem()?.to_str()?).parse().ok();
        Ok(paths.iter().filter_map(id).collect())
    }

    pub(crate) fn image_record(&self, id: &Digest) -> Result<Option<ImageRecord>, StoreError> {
        files::read_json(&self.image_path(id))
    }

    pub(crate) fn name_record(&self, name: &Reference) -> Result<Option<NameRecord>, StoreError> {
        Ok(files::read_json::<NameRecord>(&self.name_path(name))?.filter(|record| record.name == *name))
    }

    pub(crate) fn name_records(&self) -> Result<Vec<NameRecord>, StoreError> {
        let paths = files::list_dir(&self.root.join("names"))?;
        paths.iter().filter_map(|path| files::read_json(path).transpose()).collect()
    }

    /// A manifest or configuration that is stored; checked against its digest again.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.blob_path(digest);
        match fs::read(&path) {
            Ok(bytes) => Ok(digest.matches(&bytes).then_some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", &path, error)),
        }
    }

    /// The stored layer of this diff id, if it is there as it was stored.
    pub(crate) fn layer(&self, diff_id: &Digest) -> Result<Option<LayerBlob>, StoreError> {
        Ok(self.layer_meta(diff_id)?.and_then(|meta| {
            self.look_at(&LayerRecord {
                diff_id: meta.diff_id,
                length_bytes: meta.length_bytes,
                root_opaque: meta.root_opaque,
            })
        }))
    }

    pub(crate) fn layer_meta(&self, diff_id: &Digest) -> Result<Option<LayerMeta>, StoreError> {
        let meta = files::read_json::<LayerMeta>(&self.layer_file(diff_id, "json"))?;
        Ok(meta.filter(|meta| meta.format == LayerMeta::FORMAT && meta.diff_id == *diff_id))
    }

    /// The layer of a record, if its blob has the length that it should.
    fn look_at(&self, record: &LayerRecord) -> Option<LayerBlob> {
        let LayerRecord { diff_id, length_bytes, root_opaque } = record.clone();
        let path = self.layer_path(&diff_id);
        let data = fs::symlink_metadata(&path).ok()?;
        (data.is_file() && data.len() == length_bytes).then_some(LayerBlob {
            diff_id,
            path,
            length_bytes,
            root_opaque,
        })
    }
}

// Adding.
impl Store {
    /// Makes a finished, verified blob the layer of `diff_id`.
    pub(crate) fn commit_layer(
        &self,
        diff_id: &Digest,
        blob: TempFile,
        summary: &LayerSummary,
    ) -> Result<LayerBlob, StoreError> {
        let path = self.layer_path(diff_id);
        let (length_bytes, root_opaque) = (summary.blob_len, summary.root_opaque);
        let meta = LayerMeta {
            format: LayerMeta::FORMAT,
            diff_id: diff_id.clone(),
            length_bytes,
            root_opaque,
            implied_dirs: summary.implied_dirs.iter().map(|path| record::path_text(path)).collect(),
            more_implied_dirs: summary.implied_dir_count > summary.implied_dirs.len() as u64,
            blob_digest: record::digest_file(blob.file(), &path)?,
        };
        blob.persist(&path)?;
        files::write_json(&self.tmp_dir(), &self.layer_file(diff_id, "json"), &meta)?;
        Ok(LayerBlob { diff_id: diff_id.clone(), path, length_bytes, root_opaque })
    }

    /// Records an image whose layers are all here, under its names; old owners of a name lose it.
    pub(crate) fn commit_image(
        &self,
        record: &ImageRecord,
        documents: &[(&Digest, &[u8])],
        names: &[NameRecord],
    ) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        for (digest, bytes) in documents {
            let path = self.blob_path(digest);
            if !path.exists() {
                files::write_file(&self.tmp_dir(), &path, bytes)?;
            }
        }
        files::write_json(&self.tmp_dir(), &self.image_path(&record.id), record)?;
        for name in names {
            files::write_json(&self.tmp_dir(), &self.name_path(&name.name), name)?;
        }
        tracing::info!(image = %record.id, layers = record.layers.len(), process = process::id(), "image stored");
        Ok(())
    }
}
