//! The start message: what to serve, with its descriptors, on the socket that the owner left open.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nacre_protocol::control::{MAX_FDS, MAX_MESSAGE};
use nacre_protocol::fs::{Change, MAX_SHARES, Order, START_FD, Share, Start, StartReply, Submounts};
use nacre_protocol::id::{ContainerId, IdError};
use nacre_protocol::vm::FdIndex;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockType, getsockopt, recv, recvmsg, send, sockopt};
use vhost_fs::vhost_user::Listener;

use crate::sys;

/// A start that cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("descriptor {START_FD} is not a seqpacket socket")]
    NoSocket(#[source] io::Error),
    #[error("the socket to the owner failed")]
    Socket(#[source] io::Error),
    #[error("the owner hung up before it sent the start message")]
    HungUp,
    #[error("the message or its descriptors were cut off")]
    Truncated,
    #[error("the message does not parse")]
    Parse(#[source] serde_json::Error),
    #[error("descriptor {} did not come, or is named twice", .0.0)]
    NoDescriptor(FdIndex),
    #[error("{0} shares are more than {MAX_SHARES}")]
    TooManyShares(usize),
    #[error("share name {0:?} cannot be one")]
    ShareName(String, #[source] IdError),
    #[error("share name {0:?} stands twice")]
    SameName(String),
}

/// One share, its descriptor taken out of the message.
pub(crate) struct ShareFile {
    pub(crate) name: ContainerId,
    pub(crate) file: OwnedFd,
    pub(crate) read_only: bool,
    pub(crate) submounts: Submounts,
    pub(crate) user_namespace: Option<Arc<OwnedFd>>,
}

/// What the owner asked for.
pub(crate) enum Started {
    Serve { listener: Listener, shares: Vec<ShareFile> },
    Change { server: OwnedFd, add: Vec<ShareFile>, remove: Vec<ContainerId> },
}

/// The owner's end of things.
pub(crate) struct Owner(OwnedFd);

impl Owner {
    /// Takes descriptor [`START_FD`].
    pub(crate) fn inherited() -> Result<Self, StartError> {
        let socket = sys::inherited(START_FD).map_err(StartError::NoSocket)?;
        match getsockopt(&socket, sockopt::SockType) {
            Ok(SockType::SeqPacket) => Ok(Self(socket)),
            Ok(_) => Err(StartError::NoSocket(io::Error::from(nix::errno::Errno::EPROTOTYPE))),
            Err(errno) => Err(StartError::NoSocket(errno.into())),
        }
    }

    pub(crate) fn try_clone(&self) -> Result<Self, StartError> {
        self.0.try_clone().map(Self).map_err(StartError::Socket)
    }

    /// Receives and checks the one start message.
    pub(crate) fn receive(&self) -> Result<Started, StartError> {
        let (bytes, fds) = self.receive_bytes()?;
        let order: Order = serde_json::from_slice(&bytes).map_err(StartError::Parse)?;
        let mut fds = Received(fds.into_iter().map(|fd| Some(Arc::new(fd))).collect());
        match order {
            Order::Serve(Start { listener, shares }) => {
                check(&shares)?;
                let listener = std::os::unix::net::UnixListener::from(fds.take(listener)?);
                Ok(Started::Serve { listener: Listener::from(listener), shares: fds.take_all(shares)? })
            }
            Order::Change(Change { server, add, remove }) => {
                check(&add)?;
                if remove.len() > MAX_SHARES {
                    return Err(StartError::TooManyShares(remove.len()));
                }
                let remove = remove.into_iter().map(share_name).collect::<Result<_, _>>()?;
                Ok(Started::Change { server: fds.take(server)?, add: fds.take_all(add)?, remove })
            }
        }
    }

    fn receive_bytes(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), StartError> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
                .map_err(|errno| StartError::Socket(errno.into()))?;
        let mut fds = Vec::new();
        for control in message.cmsgs().map_err(|_| StartError::Truncated)? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                fds.extend(raw.into_iter().map(sys::received));
            }
        }
        let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
        let count = message.bytes;
        if cut {
            return Err(StartError::Truncated);
        }
        if count == 0 {
            return Err(StartError::HungUp);
        }
        buffer.truncate(count);
        Ok((buffer, fds))
    }

    /// Tells the owner that the server serves, or why not.
    pub(crate) fn reply(&self, reply: &StartReply) -> Result<(), StartError> {
        let bytes = serde_json::to_vec(reply).map_err(StartError::Parse)?;
        send(self.0.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL)
            .map_err(|errno| StartError::Socket(errno.into()))?;
        Ok(())
    }

    /// Returns when the owner has closed its end.
    pub(crate) fn wait_until_gone(&self) {
        let mut byte = [0];
        // A further message has no meaning and is dropped; an error is an end too.
        while recv(self.0.as_raw_fd(), &mut byte, MsgFlags::empty()).is_ok_and(|count| count > 0) {}
    }
}

/// Descriptors of a message, each to be taken once; a user namespace may be looked at by many before.
struct Received(Vec<Option<Arc<OwnedFd>>>);

impl Received {
    fn place(&mut self, index: FdIndex) -> Option<&mut Option<Arc<OwnedFd>>> {
        usize::try_from(index.0).ok().and_then(|index| self.0.get_mut(index))
    }

    fn take(&mut self, index: FdIndex) -> Result<OwnedFd, StartError> {
        let taken = self.place(index).and_then(Option::take).and_then(Arc::into_inner);
        taken.ok_or(StartError::NoDescriptor(index))
    }

    fn share(&mut self, index: FdIndex) -> Result<Arc<OwnedFd>, StartError> {
        self.place(index).and_then(|place| place.clone()).ok_or(StartError::NoDescriptor(index))
    }

    fn take_all(&mut self, shares: Vec<Share>) -> Result<Vec<ShareFile>, StartError> {
        let take = |share: Share| {
            let Share { name, file, read_only, submounts, user_namespace } = share;
            let user_namespace = user_namespace.map(|index| self.share(index)).transpose()?;
            Ok(ShareFile {
                name: share_name(name)?,
                file: self.take(file)?,
                read_only,
                submounts,
                user_namespace,
            })
        };
        shares.into_iter().map(take).collect()
    }
}

fn share_name(name: String) -> Result<ContainerId, StartError> {
    name.parse().map_err(|error| StartError::ShareName(name, error))
}

fn check(shares: &[Share]) -> Result<(), StartError> {
    if shares.len() > MAX_SHARES {
        return Err(StartError::TooManyShares(shares.len()));
    }
    let mut names: Vec<&str> = shares.iter().map(|share| share.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(StartError::SameName(pair[0].to_owned())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{AddressFamily, ControlMessage, SockFlag, sendmsg, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, Owner) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (ours, Owner(theirs))
    }

    fn send_order(socket: &OwnedFd, order: &Order, fds: &[RawFd]) {
        let bytes = serde_json::to_vec(order).unwrap();
        sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            &[ControlMessage::ScmRights(fds)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
    }

    fn share(name: &str, index: u32) -> Share {
        let (file, submounts) = (FdIndex(index), Submounts::AsShare);
        Share { name: name.into(), file, read_only: true, submounts, user_namespace: None }
    }

    fn outcome(shares: Vec<Share>) -> Result<Started, StartError> {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let file = std::fs::File::open(dir.path()).unwrap();
        let (socket, owner) = pair();
        let order = Order::Serve(Start { listener: FdIndex(0), shares });
        let users = std::fs::File::open("/proc/self/ns/user").unwrap();
        send_order(&socket, &order, &[listener.as_raw_fd(), file.as_raw_fd(), users.as_raw_fd()]);
        owner.receive()
    }

    #[test]
    fn descriptors_are_taken_by_their_index() {
        let Ok(Started::Serve { shares, .. }) = outcome(vec![share("a", 1)]) else { panic!() };
        assert_eq!(shares.len(), 1);
        assert_eq!(shares[0].name.as_str(), "a");
    }

    #[test]
    fn f01_entry_to_remove_with_a_path_is_refused() {
        let (socket, owner) = pair();
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        let change = |remove: &str| {
            Order::Change(Change { server: FdIndex(0), add: vec![], remove: vec![remove.to_owned()] })
        };
        for bad in ["..", "../shares", "a/b", ""] {
            send_order(&socket, &change(bad), &[file.as_raw_fd()]);
            assert!(matches!(owner.receive(), Err(StartError::ShareName(..))), "{bad:?}");
        }
        send_order(&socket, &change("a"), &[file.as_raw_fd()]);
        assert!(matches!(owner.receive(), Ok(Started::Change { .. })));
    }

    #[test]
    fn f01_share_name_with_a_path_is_refused() {
        assert!(matches!(outcome(vec![share("../a", 1)]), Err(StartError::ShareName(..))));
    }

    #[test]
    fn same_name_or_descriptor_twice_is_refused() {
        assert!(matches!(outcome(vec![share("a", 1), share("a", 1)]), Err(StartError::SameName(_))));
        assert!(matches!(outcome(vec![share("a", 1), share("b", 1)]), Err(StartError::NoDescriptor(_))));
        assert!(matches!(outcome(vec![share("a", 9)]), Err(StartError::NoDescriptor(_))));
    }

    #[test]
    fn user_namespace_is_shared_and_is_no_file_of_a_share() {
        let with = |file, users| Share { user_namespace: Some(FdIndex(users)), ..share("a", file) };
        let Ok(Started::Serve { shares, .. }) = outcome(vec![with(1, 2)]) else { panic!() };
        assert!(shares[0].user_namespace.is_some());
        // Its own file, the listener, or none at all.
        for bad in [with(1, 1), with(1, 0), with(1, 9)] {
            assert!(matches!(outcome(vec![bad]), Err(StartError::NoDescriptor(_))));
        }
    }

    #[test]
    fn owner_that_hangs_up_is_noticed() {
        let (socket, owner) = pair();
        drop(socket);
        assert!(matches!(owner.receive(), Err(StartError::HungUp)));
    }
}
