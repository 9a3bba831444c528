//! What containers that join bring along, and take away with them: root, shares, disks, volumes that follow the host's, sockets.
//!
//! ```text
//! disks and volumes opened -> mounts recorded -> shares served -> disks plugged -> volumes and sockets given
//! ```

use nacre_protocol::fs::Submounts;
use tracing::debug;

use super::{Machine, may_hold_unwritten, sockets};
use crate::error::SandboxError;
use crate::plan::{Plan, Share};
use crate::storage::{HostMounts, OpenDisks, OpenShares, StorageError, open_disks, open_shares};
use crate::volumes::{self, Followed, OpenVolume, Volume};

/// Most shares that a file server can have had: fuse-backend-rs numbers the mounts of its life with a byte.
const MAX_SERVED: usize = 250;

/// What a container that joined has brought along.
#[derive(Debug)]
pub struct Addition {
    shares: Vec<String>,
    mounts: HostMounts,
    /// Slots of its disks.
    slots: Vec<u32>,
    /// Volumes that follow the host's.
    volumes: Vec<Followed>,
    /// Sockets that stand in for the host's.
    sockets: Vec<sockets::GivenSocket>,
    /// Where the layers of its root lie on the first of its disks.
    layers: Vec<(u64, u64)>,
}

impl Addition {
    /// Where the layers of its root lie, where it has any.
    pub fn layers(&self) -> &[(u64, u64)] {
        &self.layers
    }
}

impl Machine {
    /// Mounts the root of a container that joins, and shares it with the guest, and whatever else its plan shares.
    ///
    /// # Errors
    /// See [`SandboxError`]. Nothing is left of it.
    pub async fn add(&mut self, plan: &Plan) -> Result<Addition, SandboxError> {
        let OpenDisks { disks, layers } = open_disks(plan)?;
        let (volumes, shares) = self.open_volumes(&plan.volumes).await?;
        // Those that cannot cross by value are shares.
        let plan = &Plan { shares: [plan.shares.clone(), shares].concat(), ..plan.clone() };
        self.served += plan.shares.len();
        if self.served > MAX_SERVED {
            return Err(SandboxError::TooManyShares);
        }
        let known = self.record.mounts.len();
        self.record.mounts.extend(HostMounts::points_of(plan));
        self.dir.write(&self.record)?;
        let added = match self.share(plan).await {
            Ok((mounts, sockets)) => match self.plug_disks(&disks).await {
                Ok(slots) => Ok((mounts, sockets, slots)),
                Err(error) => {
                    self.withdraw(plan).await;
                    Err(error)
                }
            },
            Err(error) => Err(error),
        };
        match added {
            Ok((mounts, sockets, slots)) => {
                self.has_unwritten |= may_hold_unwritten(plan);
                let shares = plan.shares.iter().map(|share| share.name.clone()).collect();
                let mut addition =
                    Addition { shares, mounts, slots, volumes: Vec::new(), sockets: Vec::new(), layers };
                let mut given = self.follow(volumes, &mut addition.volumes).await;
                if given.is_ok() {
                    given = self.give_sockets(sockets, &mut addition.sockets).await;
                }
                match given {
                    Ok(()) => Ok(addition),
                    Err(error) => {
                        // The VM may be gone, and everything with it.
                        let _ = self.remove(addition).await;
                        Err(error)
                    }
                }
            }
            Err(error) => {
                self.record.mounts.truncate(known);
                self.dir.write(&self.record)?;
                Err(error)
            }
        }
    }

    /// Opens volumes, and makes shares of those that cannot cross by value.
    async fn open_volumes(&self, wanted: &[Volume]) -> Result<(Vec<OpenVolume>, Vec<Share>), SandboxError> {
        let wanted = wanted.to_vec();
        if wanted.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let opened = tokio::task::spawn_blocking(move || {
            let (mut open, mut shares) = (Vec::new(), Vec::new());
            for volume in wanted {
                match volumes::open(&volume) {
                    Ok(volume) => open.push(volume),
                    Err(error) => {
                        debug!(%error, source = ?volume.source, "a volume is a share");
                        let Volume { name, source, users } = volume;
                        let (read_only, submounts, id_mapped) = (true, Submounts::AsShare, users.is_some());
                        shares.push(Share { name, source, read_only, submounts, id_mapped });
                    }
                }
            }
            (open, shares)
        });
        let opened = tokio::time::timeout(self.timeout, opened).await;
        opened.map_err(|_| SandboxError::StorageTimeout(self.timeout))?.map_err(|_| SandboxError::Closed)
    }

    async fn follow(&self, volumes: Vec<OpenVolume>, into: &mut Vec<Followed>) -> Result<(), SandboxError> {
        for volume in volumes {
            let followed = volume.follow(&self.agent).await;
            into.push(self.explained(followed).await?);
        }
        Ok(())
    }

    /// Takes shares back, of which some may never have been served.
    async fn withdraw(&self, plan: &Plan) {
        let (Some(server), Ok(program)) = (&self.file_server, self.assets.fs()) else { return };
        let names: Vec<String> = plan.shares.iter().map(|share| share.name.clone()).collect();
        if !names.is_empty() {
            let nothing = OpenShares::default();
            let _ = server.change(&program, (&[], &nothing), &names, self.timeout).await;
        }
    }

    async fn share(&self, plan: &Plan) -> Result<(HostMounts, Vec<sockets::OpenSocket>), SandboxError> {
        if plan.shares.is_empty() {
            return Ok((HostMounts::default(), Vec::new()));
        }
        let server = self.file_server.as_ref().ok_or(SandboxError::NoFileServer)?;
        let program = self.assets.fs()?;
        // Beside the requests of the other containers: a volume whose server hangs keeps whoever looks at it.
        let wanted = plan.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            let mounts = HostMounts::make(&wanted)?;
            Ok::<_, StorageError>((open_shares(&wanted.shares, wanted.users.as_ref())?, mounts))
        });
        let prepared = tokio::time::timeout(self.timeout, prepared).await;
        let prepared = prepared.map_err(|_| SandboxError::StorageTimeout(self.timeout))?;
        let (OpenShares { files, user_namespace }, mounts) = prepared.map_err(|_| SandboxError::Closed)??;
        let (shares, files, sockets) = sockets::take(plan, files).map_err(|errno| SandboxError::Socket {
            what: "a socket for one of the host's",
            source: errno.into(),
        })?;
        let open = OpenShares { files, user_namespace };
        let changed = server.change(&program, (&shares, &open), &[], self.timeout).await;
        if let Err(error) = changed {
            self.withdraw(plan).await;
            return Err(error.into());
        }
        Ok((mounts, sockets))
    }

    /// Takes back what [`Self::add`] has given.
    ///
    /// # Errors
    /// See [`SandboxError`]. The mounts on the host are gone all the same.
    pub async fn remove(&mut self, addition: Addition) -> Result<(), SandboxError> {
        let Addition { shares, mounts, slots, volumes, sockets, .. } = addition;
        self.take_sockets(sockets).await?;
        for volume in volumes {
            let ended = volume.end(&self.agent).await;
            self.explained(ended).await?;
        }
        for slot in slots {
            self.unplug(slot).await?;
        }
        let points = mounts.into_points();
        self.record.mounts.retain(|point| !points.contains(point));
        if !shares.is_empty() {
            let server = self.file_server.as_ref().ok_or(SandboxError::NoFileServer)?;
            let program = self.assets.fs()?;
            server.change(&program, (&[], &OpenShares::default()), &shares, self.timeout).await?;
        }
        Ok(self.dir.write(&self.record)?)
    }
}
