//! One packet a message on a `SOCK_SEQPACKET` socket, with descriptors: the owner's end of the sockets to
//! `nacre-vmm` and `nacre-fs`. What comes back is bounded and carries no descriptors.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nacre_protocol::control::{MAX_FDS, MAX_MESSAGE};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A message that cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket failed.
    #[error("control socket failed")]
    Socket(#[from] io::Error),
    /// Too long for one packet.
    #[error("control message has {0} bytes, at most {MAX_MESSAGE} are allowed")]
    TooLong(usize),
    /// Too many descriptors for one packet.
    #[error("control message has {0} descriptors, at most {MAX_FDS} are allowed")]
    TooManyDescriptors(usize),
    /// Not the JSON that it should be.
    #[error("control message is not understood")]
    Json(#[from] serde_json::Error),
}

/// The owner's end.
#[derive(Debug)]
pub struct Channel {
    socket: AsyncFd<OwnedFd>,
}

/// Both ends: ours, and the one for the child.
///
/// # Errors
/// What the kernel says; or outside of a runtime.
pub fn pair() -> io::Result<(Channel, OwnedFd)> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((Channel { socket: crate::sys::watch(ours, Interest::READABLE | Interest::WRITABLE)? }, theirs))
}

impl Channel {
    /// Sends one message with its descriptors.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub async fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(ChannelError::TooLong(bytes.len()));
        }
        if fds.len() > MAX_FDS {
            return Err(ChannelError::TooManyDescriptors(fds.len()));
        }
        let send = |socket: &OwnedFd| Ok(send_packet(socket, &bytes, fds)?);
        Ok(self.socket.async_io(Interest::WRITABLE, send).await?)
    }

    /// Receives one message; none at the end of file.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub async fn receive<T: DeserializeOwned>(&self) -> Result<Option<T>, ChannelError> {
        // One byte more than allowed shows a message that is too long.
        let mut buffer = vec![0; MAX_MESSAGE + 1];
        let receive =
            |socket: &OwnedFd| Ok(rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?.0);
        let length = match self.socket.async_io(Interest::READABLE, receive).await {
            Ok(0) => return Ok(None),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if length > MAX_MESSAGE {
            return Err(ChannelError::TooLong(length));
        }
        Ok(Some(serde_json::from_slice(&buffer[..length])?))
    }
}

fn send_packet(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(rustix::io::Errno::NOBUFS);
    }
    rustix::net::sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Descriptors of one message, in the order of their indexes.
#[derive(Debug, Default)]
pub struct FdTable<'a> {
    fds: Vec<BorrowedFd<'a>>,
}

impl<'a> FdTable<'a> {
    /// Adds a descriptor; its index goes into the message.
    pub fn add(&mut self, fd: &'a impl AsFd) -> nacre_protocol::vm::FdIndex {
        self.fds.push(fd.as_fd());
        nacre_protocol::vm::FdIndex(u32::try_from(self.fds.len() - 1).unwrap_or(u32::MAX))
    }

    /// All of them.
    pub fn as_slice(&self) -> &[BorrowedFd<'a>] {
        &self.fds
    }
}
