//! Packets with descriptors over a `SOCK_SEQPACKET` socket.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nacre_protocol::control::{FromVmm, MAX_FDS, MAX_MESSAGE};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockType, UnixAddr, getsockopt, recvmsg, sendmsg, sockopt,
};

use crate::sys;

/// The socket broke.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It is another file.
    #[error("the control descriptor is not a packet socket")]
    NotASocket,
    /// It could not be read.
    #[error("the control socket could not be read")]
    Receive(#[source] Errno),
    /// It could not be written.
    #[error("the control socket could not be written")]
    Send(#[source] Errno),
    /// A message cannot be expressed.
    #[error("a message could not be encoded")]
    Encode(#[source] serde_json::Error),
    /// The owner sent too much.
    #[error("a message is longer than {MAX_MESSAGE} bytes or has more than {MAX_FDS} descriptors")]
    TooLong,
}

/// The bytes of a message and the descriptors that came with it.
type Packet = (Vec<u8>, Vec<OwnedFd>);

/// The VMM's end of the control socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Takes the descriptor over.
    ///
    /// # Errors
    /// [`ControlError::NotASocket`].
    pub fn new(fd: OwnedFd) -> Result<Self, ControlError> {
        match getsockopt(&fd, sockopt::SockType) {
            Ok(SockType::SeqPacket) => Ok(Self(fd)),
            _ => Err(ControlError::NotASocket),
        }
    }

    /// The next packet with its descriptors. None: end of file.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn receive(&self) -> Result<Option<Packet>, ControlError> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut control = cmsg_space!([std::os::fd::RawFd; MAX_FDS]);
        let (count, truncated, fds) = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let fd = self.0.as_raw_fd();
            match recvmsg::<UnixAddr>(fd, &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
                Ok(message) => {
                    let mut fds = Vec::new();
                    for part in message.cmsgs().map_err(|_| ControlError::TooLong)? {
                        if let ControlMessageOwned::ScmRights(raw) = part {
                            fds.extend(sys::own_received_fds(&raw));
                        }
                    }
                    let truncated = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
                    break (message.bytes, truncated, fds);
                }
                Err(Errno::EINTR) => {}
                // The peer is gone with unread data: as good as its end of file.
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(error) => return Err(ControlError::Receive(error)),
            }
        };
        if truncated {
            return Err(ControlError::TooLong);
        }
        bytes.truncate(count);
        Ok((count > 0).then_some((bytes, fds)))
    }

    /// Sends one packet.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn send(&self, message: &FromVmm) -> Result<(), ControlError> {
        let bytes = serde_json::to_vec(message).map_err(ControlError::Encode)?;
        loop {
            let parts = [IoSlice::new(&bytes)];
            match sendmsg::<UnixAddr>(self.0.as_raw_fd(), &parts, &[], MsgFlags::MSG_NOSIGNAL, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(ControlError::Send(error)),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
