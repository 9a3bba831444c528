//! The network that a caller prepared for a sandbox, handed on to its VM.
//!
//! CNI (or Docker) puts links into a network namespace before the sandbox is made. Each of them is joined to a tap there, by
//! traffic control: what arrives at the link leaves through the tap, to the guest, and the other way round, so the
//! host's own stack in that namespace takes no part. The guest's link gets the same address on every layer. What changes in the
//! namespace later is followed: Docker moves its links there when the VM is up, and more of them while the container runs.
//!
//! ```text
//! namespace.rs  enters the namespace, makes taps there
//! found.rs      what the kernel says is in it -> what the guest gets (pure)
//! join.rs       link <-> tap, by ingress qdiscs with a redirecting filter
//! ```

mod found;
mod join;
mod namespace;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use nacre_protocol::rpc::agent::ConfigureNetworkRequest;
use rtnetlink::Handle;
use tokio::task::JoinHandle;
use tracing::debug;

use found::{Found, Link};
pub(crate) use namespace::Namespace;

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

/// For what belongs together to be there: a link gets its addresses and routes one after the other.
const SETTLE: Duration = Duration::from_millis(50);

/// A tap that a guest's link is joined to.
#[derive(Debug)]
pub struct Tap {
    /// The namespace's link, by its index there.
    pub link: u32,
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
    namespace: Namespace,
    /// None once it is given back.
    conversation: Option<Conversation>,
    joined: Vec<Joined>,
    /// Names of all taps that were ever made: one goes only when the VMM has closed it.
    taps: BTreeSet<String>,
    request: ConfigureNetworkRequest,
    is_told: bool,
    /// Whether the namespace's own stack is let ask name servers.
    asks_names: bool,
    events: Option<Events>,
}

/// A link of the namespace that is joined to a tap.
#[derive(Debug)]
struct Joined {
    link: u32,
    mac: [u8; 6],
}

/// How the kernel is spoken to.
#[derive(Debug)]
struct Conversation {
    handle: Handle,
    task: JoinHandle<()>,
}

/// What became of a namespace since it was looked at last.
#[derive(Debug, Default)]
pub struct Changes {
    /// Taps of links that are new.
    pub added: Vec<Tap>,
    /// Links that are gone.
    pub removed: Vec<u32>,
}

/// Says that something changed in a namespace, not what.
pub struct Events(Pin<Box<dyn Stream<Item = ()> + Send + Sync>>);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// Waits for a change, and for what comes along with it; false: there are no more.
    pub async fn next(&mut self) -> bool {
        let Some(()) = self.0.next().await else { return false };
        while let Ok(Some(())) = tokio::time::timeout(SETTLE, self.0.next()).await {}
        true
    }
}

impl Network {
    /// Enters the namespace at `path`; its links are joined by [`Self::update`].
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let namespace = Namespace::open(path)?;
        let (handle, events, task) = namespace.netlink()?;
        Ok(Self {
            namespace,
            conversation: Some(Conversation { handle, task }),
            joined: Vec::new(),
            taps: BTreeSet::new(),
            request: ConfigureNetworkRequest::default(),
            // There is nothing to tell yet.
            is_told: true,
            asks_names: false,
            events: Some(events),
        })
    }

    /// Enters the VMM's own namespace, where Docker puts links and a name server, which asks other servers from there.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn open_own(path: &Path) -> Result<Self, NetworkError> {
        let mut network = Self::open(path)?;
        network.asks_names = true;
        let range = format!("{} {}", join::NAME_PORTS.start(), join::NAME_PORTS.end());
        network.namespace.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", &range))?;
        Ok(network)
    }

    /// The namespace.
    ///
    /// # Errors
    /// Where there is no descriptor to be had.
    pub(crate) fn namespace(&self) -> io::Result<Namespace> {
        self.namespace.try_clone()
    }

    /// Looks at the namespace, and joins the links to taps that are new since the last time.
    ///
    /// # Errors
    /// See [`NetworkError`]. Links that were joined before stay so.
    pub async fn update(&mut self) -> Result<Changes, NetworkError> {
        let Some(Conversation { handle, .. }) = &self.conversation else { return Ok(Changes::default()) };
        let handle = handle.clone();
        let found = Found::read(&handle).await?;
        let mut links = found.links();
        links.retain(|link| !self.taps.contains(&link.name));
        if let Some(tap) = links.iter().find(|link| link.name.starts_with(TAP_PREFIX)) {
            return Err(NetworkError::Taken { tap: tap.name.clone() });
        }
        if !found.has_plain_routes() {
            return Err(NetworkError::Route);
        }
        if links.len() > MAX_LINKS {
            return Err(NetworkError::TooManyLinks(links.len()));
        }
        let mut changes = Changes::default();
        self.joined.retain(|joined| {
            // One that has got another MAC address since is another link to the guest. Docker sets it late.
            let is_there = links.iter().any(|link| (link.index, link.mac) == (joined.link, joined.mac));
            if !is_there {
                changes.removed.push(joined.link);
            }
            is_there
        });
        for link in &links {
            if !self.joined.iter().any(|joined| joined.link == link.index) {
                changes.added.push(self.join(&handle, link).await?);
            }
        }
        let request = found.request(&links);
        self.is_told &= request == self.request;
        self.request = request;
        debug!(
            links = links.len(),
            new = changes.added.len(),
            gone = changes.removed.len(),
            "network looked at"
        );
        Ok(changes)
    }

    async fn join(&mut self, handle: &Handle, link: &Link) -> Result<Tap, NetworkError> {
        let tap = self.namespace.make_tap()?;
        self.taps.insert(tap.name.clone());
        // Before the call: what it has done until it fails is to be undone as well.
        self.joined.push(Joined { link: link.index, mac: link.mac });
        let mut joined = join::join(handle, link, &tap.name).await;
        if joined.is_ok() && self.asks_names {
            joined = join::let_names_through(handle, link.index, &tap.name).await;
        }
        if let Err(error) = joined {
            self.forget(link.index).await;
            return Err(error);
        }
        Ok(Tap { link: link.index, file: tap.file, mac: link.mac, mtu: link.mtu })
    }

    /// Gives a link back that the guest did not get: the next look finds it as new.
    pub async fn forget(&mut self, link: u32) {
        self.joined.retain(|joined| joined.link != link);
        if let Some(Conversation { handle, .. }) = &self.conversation {
            // It may be gone.
            let _ = join::let_go(handle, link).await;
        }
    }

    /// What the guest is to be told, where it does not know it yet.
    pub fn untold(&self) -> Option<&ConfigureNetworkRequest> {
        (!self.is_told).then_some(&self.request)
    }

    /// The guest knows now.
    pub fn told(&mut self) {
        self.is_told = true;
    }

    /// Tells of changes; for the first who asks.
    pub fn take_events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// Gives the namespace its links back, and waits for it.
    pub async fn leave(mut self) {
        if let Some(conversation) = self.conversation.take() {
            conversation.let_go(std::mem::take(&mut self.joined)).await;
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let (Some(conversation), Ok(runtime)) =
            (self.conversation.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(conversation.let_go(std::mem::take(&mut self.joined)));
        }
    }
}

impl Conversation {
    /// A namespace that is gone by now needs nothing.
    async fn let_go(self, joined: Vec<Joined>) {
        for Joined { link, .. } in &joined {
            if let Err(error) = join::let_go(&self.handle, *link).await {
                debug!(error = &error as &dyn std::error::Error, "a link stays redirected");
            }
        }
        self.task.abort();
    }
}

fn netlink(action: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    move |source| NetworkError::Netlink { action, source: Box::new(source) }
}
