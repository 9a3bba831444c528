//! Volumes that a kubelet keeps up to date: configMap, secret, projected, downward API.
//!
//! They cross to the guest by value ([`nacre_protocol::volumes`] tells why), and again at each change:
//!
//! ```text
//! directory --inotify--> watch.rs --> read.rs: all of it, bounded --> SetVolume --> the agent's copy
//! ```
//!
//! One that is too large or holds something else than files, directories and links is a share like any other.

mod read;
mod watch;

use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use nacre_protocol::rpc::agent::VolumeEntry;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::agent::{Agent, AgentError};
use crate::users::IdMaps;
use read::Tree;
use watch::Watch;

/// What the directories of such volumes are called (`kubernetes.io/configmap` and so on, escaped).
const KINDS: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];

/// A volume that a plan names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name in the guest, and that of the share that stands in for it.
    pub name: String,
    /// The directory on the host.
    pub source: PathBuf,
    /// Where its owners are shown as those of a user namespace: its ids.
    pub users: Option<IdMaps>,
}

/// Whether a path is that of such a volume: `pods/UID/volumes/KIND/NAME`, wherever the kubelet has its directory.
pub fn is_kept_by_a_kubelet(source: &Path) -> bool {
    let mut parts = source.components().rev();
    let mut next = || match parts.next() {
        Some(Component::Normal(part)) => part.to_str(),
        _ => None,
    };
    let (name, kind, volumes, uid, pods) = (next(), next(), next(), next(), next());
    name.is_some()
        && kind.is_some_and(|kind| KINDS.contains(&kind))
        && volumes == Some("volumes")
        && uid.is_some()
        && pods == Some("pods")
}

/// A volume whose directory is open and watched, and its content.
#[derive(Debug)]
pub struct OpenVolume {
    volume: Volume,
    tree: Tree,
    watch: Watch,
    content: Arc<Vec<VolumeEntry>>,
}

/// Opens a volume. May block as long as its file system does.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] where it cannot cross by value; or what the kernel says.
pub fn open(volume: &Volume) -> io::Result<OpenVolume> {
    let tree = Tree::open(&volume.source)?;
    let mut watch = Watch::new();
    let content = read_watched(volume, &tree, &mut watch)?;
    Ok(OpenVolume { volume: volume.clone(), tree, watch, content: Arc::new(content) })
}

/// Watched first: what changes later is an event.
fn read_watched(volume: &Volume, tree: &Tree, watch: &mut Watch) -> io::Result<Vec<VolumeEntry>> {
    let mut entries = tree.read(&mut |directory| watch.add(directory))?;
    if let Some(users) = &volume.users {
        for entry in &mut entries {
            (entry.uid, entry.gid) = (users.uid(entry.uid), users.gid(entry.gid));
        }
    }
    Ok(entries)
}

/// A volume of the guest that follows the host's until this is dropped.
#[derive(Debug)]
pub struct Followed {
    name: String,
    task: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl OpenVolume {
    /// Gives the guest the volume, and each change of it from now on.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn follow(self, agent: &Agent) -> Result<Followed, AgentError> {
        let name = self.volume.name.clone();
        agent.set_volume(&name, true, self.content.to_vec()).await?;
        Ok(Followed { name, task: tokio::spawn(keep(self, agent.clone())) })
    }
}

impl Followed {
    /// Takes the volume from the guest.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn end(self, agent: &Agent) -> Result<(), AgentError> {
        self.task.abort();
        agent.remove_volume(&self.name).await
    }
}

/// Tells the agent of each change, until the VM or the volume is gone.
async fn keep(mut open: OpenVolume, agent: Agent) {
    loop {
        open.watch.changed().await;
        let read = tokio::task::spawn_blocking(move || {
            let content = read_watched(&open.volume, &open.tree, &mut open.watch);
            (open, content)
        });
        let Ok((back, content)) = read.await else { return };
        open = back;
        let source = open.volume.source.as_path();
        match content {
            Ok(content) if content == *open.content => {}
            Ok(content) => {
                let content = Arc::new(content);
                match agent.set_volume(&open.volume.name, false, content.to_vec()).await {
                    Ok(()) => {
                        debug!(volume = open.volume.name, "volume changed");
                        open.content = content;
                    }
                    Err(AgentError::Gone { .. }) => return,
                    Err(AgentError::Refused { code: ttrpc::Code::NOT_FOUND, .. }) => return,
                    Err(error) => {
                        let error: &dyn std::error::Error = &error;
                        warn!(error, ?source, "a change of a volume has not reached the container");
                    }
                }
            }
            Err(error) => {
                warn!(%error, ?source, "a changed volume cannot be read: the container keeps the old one")
            }
        }
    }
}

#[cfg(test)]
mod tests;
