//! A network namespace: entered by a thread of its own, which ends in it, so that no other code ever runs there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use futures_util::StreamExt;
use rtnetlink::{Handle, MulticastGroup};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::task::JoinHandle;

use super::{Events, NetworkError, TAP_PREFIX};
use crate::sys;

/// What a guest's network is made of.
const WATCHED: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// An open network namespace that is not ours.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
}

/// A new tap, and its name in the namespace.
#[derive(Debug)]
pub(super) struct NewTap {
    pub(super) file: OwnedFd,
    pub(super) name: String,
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Namespace {
    /// Another descriptor of it.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, path: self.path.clone() })
    }

    pub(crate) fn open(path: &Path) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Namespace { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let identity = |file: &File| file.metadata().map(|found| (found.dev(), found.ino()));
        let own = File::open("/proc/thread-self/ns/net").and_then(|own| identity(&own)).map_err(failed)?;
        if identity(&file).map_err(failed)? == own {
            return Err(NetworkError::Host { path: path.to_owned() });
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// A connection to the kernel's routing tables in there, and what they tell unasked.
    pub(super) fn netlink(&self) -> Result<(Handle, Events, JoinHandle<()>), NetworkError> {
        let runtime = tokio::runtime::Handle::current();
        // Two sockets: what the kernel tells unasked has the sequence number of whoever caused it, and would pass for the
        // answer to a request of ours.
        let ((connection, handle, _), (watch, watch_handle, events)) = self.inside(|| {
            // The socket belongs to the namespace of the thread that makes it, and to the runtime that it is made in.
            let _guard = runtime.enter();
            Ok((rtnetlink::new_connection()?, rtnetlink::new_multicast_connection(&WATCHED)?))
        })?;
        let task = tokio::spawn(async move {
            let _handle = watch_handle;
            futures_util::future::join(connection, watch).await;
        });
        Ok((handle, Events(Box::pin(events.map(drop))), task))
    }

    pub(super) fn make_tap(&self) -> Result<NewTap, NetworkError> {
        let made = self.inside(|| {
            // A tap belongs to the namespace in which the device file was opened.
            let file = File::options().read(true).write(true).open("/dev/net/tun")?;
            let name = sys::make_tap(file.as_fd(), &format!("{TAP_PREFIX}%d"))?;
            Ok(NewTap { file: file.into(), name })
        });
        made.map_err(|error| match error {
            NetworkError::Namespace { source, .. } => NetworkError::Tap(source),
            other => other,
        })
    }

    /// Runs this in the namespace, on a thread of its own. It must not wait for anything: the caller does, for it.
    ///
    /// # Errors
    /// [`NetworkError::Namespace`] with what it says, or where the namespace cannot be entered.
    pub(crate) fn inside<T: Send>(
        &self,
        act: impl FnOnce() -> io::Result<T> + Send,
    ) -> Result<T, NetworkError> {
        let failed = |source| NetworkError::Namespace { path: self.path.clone(), source };
        let file = self.file.as_fd();
        let result = thread::scope(|scope| {
            let entered = scope.spawn(move || {
                move_into_link_name_space(file, Some(LinkNameSpaceType::Network))?;
                act()
            });
            entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
        });
        result.map_err(failed)
    }
}
