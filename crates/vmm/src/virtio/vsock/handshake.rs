//! A host client that has connected and not yet named a guest port.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nacre_protocol::stream::{MAX_CONNECT_LINE, parse_connect_line};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// How far the client's `CONNECT` line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More bytes are to come.
    Wait,
    /// It wants this guest port; the line is consumed, and nothing after it.
    Port(u32),
    /// It said something else, or left.
    Refused,
}

/// A client within its handshake.
pub(super) struct Handshake {
    socket: UnixStream,
}

impl Handshake {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// Looks at what the client has written. The bytes after the line belong to the guest, so the line is peeked at
    /// until it is whole.
    pub(super) fn advance(&self) -> Progress {
        let mut line = [0; MAX_CONNECT_LINE];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        let count = match receive(&self.socket, &mut line, flags) {
            Ok(0) => return Progress::Refused,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Wait,
            Err(_) => return Progress::Refused,
        };
        let seen = line.get(..count).unwrap_or_default();
        let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
            return if count < MAX_CONNECT_LINE { Progress::Wait } else { Progress::Refused };
        };
        let Some(port) = seen.get(..end).and_then(parse_connect_line) else { return Progress::Refused };
        let mut consumed = [0; MAX_CONNECT_LINE];
        let wanted = consumed.get_mut(..=end).unwrap_or_default();
        match receive(&self.socket, wanted, MsgFlags::MSG_DONTWAIT) {
            Ok(taken) if taken == end + 1 => Progress::Port(port),
            _ => Progress::Refused,
        }
    }

    pub(super) fn into_socket(self) -> UnixStream {
        self.socket
    }
}

impl AsFd for Handshake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn receive(socket: &UnixStream, bytes: &mut [u8], flags: MsgFlags) -> io::Result<usize> {
    loop {
        match recv(socket.as_raw_fd(), bytes, flags) {
            Err(Errno::EINTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read, Write};

    #[test]
    fn line_in_pieces_is_taken_and_the_rest_is_left() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let handshake = Handshake::new(near);
        assert_eq!(handshake.advance(), Progress::Wait);
        far.write_all(b"CONNECT 10").unwrap();
        assert_eq!(handshake.advance(), Progress::Wait);
        far.write_all(b"25\nNCS1rest").unwrap();
        assert_eq!(handshake.advance(), Progress::Port(1025));
        drop(far);
        let mut rest = Vec::new();
        handshake.into_socket().read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"NCS1rest");
    }

    #[test]
    fn end_of_file_before_the_line_is_refused() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"CONNECT 1025").unwrap();
        drop(far);
        let handshake = Handshake::new(near);
        // The bytes are still there; the end of file shows as a hang-up, which the muxer handles.
        assert_eq!(handshake.advance(), Progress::Wait);
        drop(handshake);
    }

    proptest! {
        #[test]
        fn any_first_bytes_end_in_a_port_or_not(bytes in prop::collection::vec(any::<u8>(), 1..80)) {
            let (near, mut far) = UnixStream::pair().unwrap();
            far.write_all(&bytes).unwrap();
            let outcome = Handshake::new(near).advance();
            let line = bytes.iter().take(MAX_CONNECT_LINE).position(|byte| *byte == b'\n');
            let port = line.and_then(|end| parse_connect_line(&bytes[..end]));
            match port {
                Some(port) => prop_assert_eq!(outcome, Progress::Port(port)),
                None => prop_assert!(!matches!(outcome, Progress::Port(_))),
            }
        }
    }
}
