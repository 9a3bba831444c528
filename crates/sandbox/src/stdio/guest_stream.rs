//! Opening a raw stream to a process in the guest, through the VMM's Unix socket (module
//! [`nacre_protocol::stream`]).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;

use nacre_protocol::ports::STREAM_PORT;
use nacre_protocol::stream::{MAX_CONNECT_LINE, TOKEN_LEN, Token, connect_line};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Where the VMM listens.
#[derive(Debug, Clone)]
pub struct Dialer {
    path: PathBuf,
}

/// A name for one stream, never used twice.
pub(super) fn new_token() -> io::Result<Token> {
    let bytes = crate::agent::random(TOKEN_LEN)?;
    Token::try_from(bytes.as_slice()).map_err(io::Error::other)
}

impl Dialer {
    /// The path may be longer than a socket address: it is taken relative to its directory's descriptor.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Opens the stream of this token.
    pub(super) async fn open(&self, token: Token, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
        let socket = self.connect(STREAM_PORT, &token.hello()).await?;
        let socket: StdUnixStream = socket.into_std()?;
        crate::sys::watch(socket.into(), interest)
    }

    /// Connects to a port of the guest, and says hello there.
    ///
    /// # Errors
    /// Where the VMM is gone, or nobody in the guest listens.
    pub(crate) async fn connect(&self, port: u32, hello: &[u8]) -> io::Result<UnixStream> {
        let socket = crate::socket::connect(&self.path)?;
        socket.set_nonblocking(true)?;
        let mut socket = UnixStream::from_std(socket)?;
        let mut request = connect_line(port).into_bytes();
        request.extend_from_slice(hello);
        socket.write_all(&request).await?;
        read_ok(&mut socket).await?;
        Ok(socket)
    }
}

/// Reads `OK <port>\n` and not a byte of what follows.
async fn read_ok(socket: &mut UnixStream) -> io::Result<()> {
    let mut line = Vec::with_capacity(MAX_CONNECT_LINE);
    while line.last() != Some(&b'\n') {
        if line.len() == MAX_CONNECT_LINE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the VMM's answer to CONNECT is too long",
            ));
        }
        line.push(socket.read_u8().await?);
    }
    if line.starts_with(b"OK ") {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the VMM's answer to CONNECT is not OK"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_protocol::stream::HELLO_LEN;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    fn answer(listener: UnixListener, reply: &'static [u8]) -> std::thread::JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut request = vec![0; b"CONNECT 1025\n".len() + HELLO_LEN];
            peer.read_exact(&mut request).unwrap();
            peer.write_all(reply).unwrap();
            request
        })
    }

    async fn open(reply: &'static [u8]) -> (io::Result<AsyncFd<OwnedFd>>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let peer = answer(UnixListener::bind(&path).unwrap(), reply);
        let stream = Dialer::new(path).open(Token([7; TOKEN_LEN]), Interest::READABLE).await;
        (stream, peer.join().unwrap())
    }

    #[tokio::test]
    async fn first_bytes_of_the_stream_stay_in_it() {
        let (stream, request) = open(b"OK 1073741824\nfirst").await;
        assert!(request.starts_with(b"CONNECT 1025\nNCS1\x07\x07"));
        let mut bytes = [0; 16];
        let count = rustix::io::read(stream.unwrap().get_ref(), &mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"first");
    }

    #[tokio::test]
    async fn h12_answers_that_are_no_ok_are_errors() {
        for reply in [&b""[..], b"NO\n", b"OK", &[b'x'; 100]] {
            assert!(open(reply).await.0.is_err(), "{reply:?}");
        }
    }
}
