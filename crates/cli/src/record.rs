//! Containers on disk: one directory each, which is the OCI bundle too.
//!
//! ```text
//! ROOT/containers/ID/record.json   what was asked for; written once
//!                    config.json   OCI configuration
//!                    hosts, hostname, resolv.conf   the container's own, for its /etc
//!                    exit.json     written by the shim when the container has ended
//!                    log.jsonl     output of a container that nobody is with
//!                    address       socket of the shim, while there is one
//! ROOT/containers/.lock            held while a name is taken
//! ```
//!
//! There is no daemon: a container's state is what its shim answers, or what `exit.json` says.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nacre_protocol::id::ContainerId;
use nacre_protocol::task::{EXIT_FILE, ExitRecord};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A record that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("no such container: {0}")]
    NotFound(String),
    #[error("the id {prefix:?} is not clear: {matches} containers begin with it")]
    Ambiguous { prefix: String, matches: usize },
    #[error(
        "the name {name:?} is in use by container {id}: remove it (nacre rm {name}) or choose another name"
    )]
    NameInUse { name: String, id: String },
    #[error("invalid container name {name:?}")]
    BadName { name: String, source: nacre_protocol::id::IdError },
    #[error("cannot use {path}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path} is damaged; remove the container with nacre rm -f")]
    Damaged { path: PathBuf, source: serde_json::Error },
}

/// What a container was asked to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) name: String,
    /// As it was written on the command line.
    pub(crate) image: String,
    /// Digest of the image's configuration.
    pub(crate) image_id: String,
    pub(crate) command: Vec<String>,
    /// Seconds since the epoch.
    pub(crate) created_s: i64,
    pub(crate) tty: bool,
    pub(crate) detached: bool,
    pub(crate) remove: bool,
    pub(crate) stop_signal: String,
    #[serde(default)]
    pub(crate) labels: Vec<String>,
}

/// The directory of containers.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn open(root: &Path) -> Result<Self, RecordError> {
        let dir = root.join("containers");
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|source| RecordError::Io { path: dir.clone(), source })?;
        Ok(Self { dir })
    }

    /// The bundle directory of a container.
    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// Takes the name and makes the bundle directory with its record.
    pub(crate) fn create(&self, record: &Record) -> Result<PathBuf, RecordError> {
        let parsed: Result<ContainerId, _> = record.name.parse();
        parsed.map_err(|source| RecordError::BadName { name: record.name.clone(), source })?;
        let _lock = self.lock()?;
        if let Some(other) = self.list()?.into_iter().find(|other| other.name == record.name) {
            let id = crate::output::short_id(&other.id).to_owned();
            return Err(RecordError::NameInUse { name: record.name.clone(), id });
        }
        let bundle = self.bundle(&record.id);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&bundle)
            .map_err(|source| RecordError::Io { path: bundle.clone(), source })?;
        if let Err(error) = write_json(&bundle.join("record.json"), record) {
            self.remove(&record.id)?;
            return Err(error);
        }
        Ok(bundle)
    }

    fn lock(&self) -> Result<nix::fcntl::Flock<File>, RecordError> {
        let path = self.dir.join(".lock");
        let failed = |source| RecordError::Io { path: path.clone(), source };
        let file = File::options().create(true).append(true).mode(0o600).open(&path).map_err(failed)?;
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed(errno.into()))
    }

    /// Every container, oldest first. A directory without a record is one that is being made or removed.
    pub(crate) fn list(&self) -> Result<Vec<Record>, RecordError> {
        let entries =
            fs::read_dir(&self.dir).map_err(|source| RecordError::Io { path: self.dir.clone(), source })?;
        let mut out = Vec::new();
        for entry in entries.flatten() {
            if let Ok(record) = read_json::<Record>(&entry.path().join("record.json")) {
                out.push(record);
            }
        }
        out.sort_by(|a, b| (a.created_s, &a.id).cmp(&(b.created_s, &b.id)));
        Ok(out)
    }

    /// By name, whole id, or the beginning of one id.
    pub(crate) fn find(&self, wanted: &str) -> Result<Record, RecordError> {
        let all = self.list()?;
        if let Some(record) = all.iter().find(|record| record.name == wanted || record.id == wanted) {
            return Ok(record.clone());
        }
        let matches: Vec<_> =
            all.iter().filter(|record| !wanted.is_empty() && record.id.starts_with(wanted)).collect();
        match matches[..] {
            [] => Err(RecordError::NotFound(wanted.to_owned())),
            [record] => Ok(record.clone()),
            _ => Err(RecordError::Ambiguous { prefix: wanted.to_owned(), matches: matches.len() }),
        }
    }

    /// How the container ended, where it has.
    pub(crate) fn exit(&self, id: &str) -> Option<ExitRecord> {
        read_json(&self.bundle(id).join(EXIT_FILE)).ok()
    }

    /// Removes the directory of a container; one that is not there is removed already.
    pub(crate) fn remove(&self, id: &str) -> Result<(), RecordError> {
        let path = self.bundle(id);
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(RecordError::Io { path, source })
            }
            _ => Ok(()),
        }
    }
}

/// Writes a file of mode 0600 that was not there.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), RecordError> {
    let failed = |source| RecordError::Io { path: path.to_owned(), source };
    let text =
        serde_json::to_vec(value).map_err(|source| RecordError::Damaged { path: path.to_owned(), source })?;
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(&text).map_err(failed)
}

/// Reads a file of JSON.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let text = fs::read(path).map_err(|source| RecordError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| RecordError::Damaged { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, name: &str) -> Record {
        Record {
            id: id.into(),
            name: name.into(),
            image: "i".into(),
            image_id: "sha256:0".into(),
            command: vec!["sh".into()],
            created_s: 1,
            tty: false,
            detached: false,
            remove: false,
            stop_signal: "TERM".into(),
            labels: Vec::new(),
        }
    }

    #[test]
    fn name_in_use_is_refused_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path()).unwrap();
        records.create(&record("aaa1", "web")).unwrap();
        let error = records.create(&record("bbb2", "web")).unwrap_err();
        assert!(matches!(error, RecordError::NameInUse { .. }));
        assert!(!records.bundle("bbb2").exists());
    }

    #[test]
    fn containers_are_found_by_name_id_and_prefix() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path()).unwrap();
        records.create(&record("aaa1", "web")).unwrap();
        records.create(&record("aab2", "db")).unwrap();
        assert_eq!(records.find("web").unwrap().id, "aaa1");
        assert_eq!(records.find("aab").unwrap().id, "aab2");
        assert!(matches!(records.find("aa"), Err(RecordError::Ambiguous { matches: 2, .. })));
        assert!(matches!(records.find(""), Err(RecordError::NotFound(_))));
    }

    #[test]
    fn h08_directories_and_files_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let records = Records::open(root.path()).unwrap();
        let bundle = records.create(&record("aaa1", "web")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&bundle), 0o700);
        assert_eq!(mode(&bundle.join("record.json")), 0o600);
    }
}
