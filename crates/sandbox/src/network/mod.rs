//! The network that a caller prepared for a sandbox, handed on to its VM.
//!
//! CNI (or Docker) puts links into a network namespace before the sandbox is made. Each of them is joined to a tap there, by
//! traffic control: what arrives at the link leaves through the tap, to the guest, and the other way round, so the
//! host's own stack in that namespace takes no part. The guest's link gets the same address on every layer.
//!
//! ```text
//! namespace.rs  enters the namespace, makes taps there
//! found.rs      what the kernel says is in it -> what the guest gets (pure)
//! join.rs       link <-> tap, by ingress qdiscs with a redirecting filter
//! ```

mod found;
mod join;
mod namespace;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nacre_protocol::rpc::agent::ConfigureNetworkRequest;
use rtnetlink::Handle;
use tokio::task::JoinHandle;
use tracing::{debug, info};

use found::Found;
use namespace::Namespace;

/// A network that a VM cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace cannot be opened or entered.
    #[error("cannot enter the network namespace {path}")]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace is the one that this process is in.
    #[error("{path} is the host's own network, which a VM cannot join")]
    Host {
        /// Its path.
        path: PathBuf,
    },
    /// No tap.
    #[error("cannot make a tap; is the module tun loaded (`nacre check`)?")]
    Tap(#[source] io::Error),
    /// A conversation with the kernel failed.
    #[error("cannot {action}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: Box<rtnetlink::Error>,
    },
    /// Another VM has the links.
    #[error("the links of the network namespace belong to another VM (its tap is {tap})")]
    Taken {
        /// The other VM's tap there.
        tap: String,
    },
    /// A route that the guest cannot be given.
    #[error(
        "the network namespace has a route by several hops, or by one of another family, which is not supported"
    )]
    Route,
    /// More links than a VM has slots for.
    #[error("the network namespace has {0} links, at most {MAX_LINKS} can be given to a VM")]
    TooManyLinks(usize),
}

/// What names of taps begin with.
const TAP_PREFIX: &str = "nacre";

/// Most links of a sandbox.
pub const MAX_LINKS: usize = 8;

/// A tap that a guest's link is joined to.
#[derive(Debug)]
pub struct Tap {
    /// Open, with a virtio-net header before each frame.
    pub file: OwnedFd,
    /// MAC address of the guest's link.
    pub mac: [u8; 6],
    /// Largest packet without its link header, in bytes.
    pub mtu: u16,
}

/// A namespace whose links are joined to taps. Dropping it gives the namespace its links back.
#[derive(Debug)]
pub struct Network {
    taps: Vec<Tap>,
    request: ConfigureNetworkRequest,
    joined: Option<Joined>,
}

/// The namespace's own links that were joined, and the connection over which they are let go.
#[derive(Debug)]
struct Joined {
    handle: Handle,
    indexes: Vec<u32>,
    connection: JoinHandle<()>,
}

impl Network {
    /// Joins the links of the namespace at `path` to taps.
    ///
    /// # Errors
    /// See [`NetworkError`]. Links that were joined until then are let go.
    pub async fn join(path: &Path) -> Result<Self, NetworkError> {
        let namespace = Namespace::open(path)?;
        let (handle, connection) = namespace.netlink()?;
        let mut joined = Joined { handle, indexes: Vec::new(), connection };
        let result = joined.join_all(&namespace).await;
        let (taps, request) = match result {
            Ok(made) => made,
            Err(error) => {
                joined.let_go().await;
                return Err(error);
            }
        };
        info!(namespace = %path.display(), links = taps.len(), "network joined");
        Ok(Self { taps, request, joined: Some(joined) })
    }

    /// The taps, for the VMM; they go with whoever closes them last.
    pub fn take_taps(&mut self) -> Vec<Tap> {
        std::mem::take(&mut self.taps)
    }

    /// What the guest is told.
    pub fn request(&self) -> &ConfigureNetworkRequest {
        &self.request
    }

    /// Gives the namespace its links back, and waits for it.
    pub async fn leave(mut self) {
        if let Some(joined) = self.joined.take() {
            joined.let_go().await;
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let (Some(joined), Ok(runtime)) = (self.joined.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(joined.let_go());
        }
    }
}

impl Joined {
    async fn join_all(
        &mut self,
        namespace: &Namespace,
    ) -> Result<(Vec<Tap>, ConfigureNetworkRequest), NetworkError> {
        let found = Found::read(&self.handle).await?;
        let links = found.links();
        if let Some(tap) = links.iter().find(|link| link.name.starts_with(TAP_PREFIX)) {
            return Err(NetworkError::Taken { tap: tap.name.clone() });
        }
        if !found.has_plain_routes() {
            return Err(NetworkError::Route);
        }
        if links.len() > MAX_LINKS {
            return Err(NetworkError::TooManyLinks(links.len()));
        }
        let mut taps = Vec::with_capacity(links.len());
        for link in &links {
            let tap = namespace.make_tap()?;
            self.indexes.push(link.index);
            join::join(&self.handle, link, &tap.name).await?;
            taps.push(Tap { file: tap.file, mac: link.mac, mtu: link.mtu });
        }
        Ok((taps, found.request(&links)))
    }

    /// A namespace that is gone by now needs nothing.
    async fn let_go(self) {
        for index in &self.indexes {
            if let Err(error) = join::let_go(&self.handle, *index).await {
                debug!(error = &error as &dyn std::error::Error, "a link stays redirected");
            }
        }
        self.connection.abort();
    }
}

fn netlink(action: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink { action, source: Box::new(source) }
}
