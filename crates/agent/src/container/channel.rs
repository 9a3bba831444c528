//! One message with descriptors over a `SOCK_SEQPACKET` socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::time::Timespec;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::orders::{MAX_FDS, MAX_MESSAGE};

/// A message that could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other side is gone.
    #[error("the other side closed its end")]
    Closed,
    /// No message came in time.
    #[error("no message within {0:?}")]
    Timeout(Duration),
    /// The message is not what this side understands.
    #[error("malformed message")]
    Malformed(#[source] serde_json::Error),
    /// The message is longer than agreed, or brought more descriptors.
    #[error("message was cut")]
    Cut,
    /// The socket.
    #[error("socket")]
    Socket(#[from] Errno),
}

/// A connected pair, close-on-exec.
///
/// # Errors
/// Those of socketpair(2).
pub(super) fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one message with its descriptors.
///
/// # Errors
/// [`ChannelError::Closed`] where nobody is there any more.
pub(super) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ChannelError> {
    let bytes = serde_json::to_vec(message).map_err(ChannelError::Malformed)?;
    if bytes.len() > MAX_MESSAGE || fds.len() > MAX_FDS {
        return Err(ChannelError::Cut);
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ChannelError::Cut);
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(ChannelError::Closed),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for one message and its descriptors (close-on-exec); for ever where there is no timeout.
///
/// # Errors
/// [`ChannelError`]; descriptors of a message that is refused are closed.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    timeout: Option<Duration>,
) -> Result<(T, Vec<OwnedFd>), ChannelError> {
    if let Some(timeout) = timeout {
        wait_readable(&socket, timeout)?;
    }
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Err(ChannelError::Closed),
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(ChannelError::Cut);
    }
    if message.bytes == 0 {
        return Err(ChannelError::Closed);
    }
    let bytes = bytes.get(..message.bytes).unwrap_or_default();
    Ok((serde_json::from_slice(bytes).map_err(ChannelError::Malformed)?, fds))
}

/// Sends one message by write(2), which every seccomp profile allows that a program can run under. Where the other side is gone, the
/// process gets SIGPIPE.
///
/// # Errors
/// [`ChannelError`].
pub(super) fn write(socket: impl AsFd, message: &impl Serialize) -> Result<(), ChannelError> {
    let bytes = serde_json::to_vec(message).map_err(ChannelError::Malformed)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(ChannelError::Cut);
    }
    loop {
        match rustix::io::write(&socket, &bytes) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(ChannelError::Closed),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for one short message by read(2); what comes along with it is lost.
///
/// # Errors
/// [`ChannelError`].
pub(super) fn read<T: DeserializeOwned>(socket: impl AsFd) -> Result<T, ChannelError> {
    let mut bytes = [0; 256];
    let length = loop {
        match rustix::io::read(&socket, &mut bytes) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Err(ChannelError::Closed),
            other => break other?,
        }
    };
    match bytes.get(..length) {
        None | Some([]) => Err(ChannelError::Closed),
        Some(bytes) => serde_json::from_slice(bytes).map_err(ChannelError::Malformed),
    }
}

fn wait_readable(socket: impl AsFd, timeout: Duration) -> Result<(), ChannelError> {
    let limit = Timespec::try_from(timeout).ok();
    loop {
        // A signal starts the wait anew: the bound is against a stuck child, not a deadline.
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], limit.as_ref()) {
            Ok(0) => return Err(ChannelError::Timeout(timeout)),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_one_by_read_and_write_too() {
        let (a, b) = pair().unwrap();
        write(&a, &"one").unwrap();
        send(&a, &"two", &[b.as_fd()]).unwrap();
        assert_eq!(receive::<String>(&b, None).unwrap().0, "one");
        assert_eq!(read::<String>(&b).unwrap(), "two");
        drop(a);
        assert!(matches!(read::<String>(&b), Err(ChannelError::Closed)));
    }

    #[test]
    fn message_arrives_with_its_descriptors() {
        let (a, b) = pair().unwrap();
        send(&a, &"hello", &[b.as_fd(), a.as_fd()]).unwrap();
        let (text, fds) = receive::<String>(&b, None).unwrap();
        assert_eq!((text.as_str(), fds.len()), ("hello", 2));
        assert!(rustix::io::fcntl_getfd(&fds[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn closed_end_is_told_apart_from_silence() {
        let (a, b) = pair().unwrap();
        let silent = receive::<String>(&b, Some(Duration::from_millis(1)));
        assert!(matches!(silent, Err(ChannelError::Timeout(_))));
        drop(a);
        assert!(matches!(receive::<String>(&b, None), Err(ChannelError::Closed)));
        assert!(matches!(send(&b, &"x", &[]), Err(ChannelError::Closed)));
    }

    #[test]
    fn other_json_is_malformed() {
        let (a, b) = pair().unwrap();
        send(&a, &7, &[]).unwrap();
        assert!(matches!(receive::<String>(&b, None), Err(ChannelError::Malformed(_))));
    }

    #[test]
    fn too_long_a_message_is_not_sent() {
        let (a, _b) = pair().unwrap();
        assert!(matches!(send(&a, &"x".repeat(MAX_MESSAGE), &[]), Err(ChannelError::Cut)));
    }
}
