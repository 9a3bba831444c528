//! The next client of a socket that stands in for one of the host's.

use std::io;
use std::os::unix::net::UnixListener;

use tokio::io::copy_bidirectional;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Stream, answer};

pub(super) async fn serve(mut stream: impl Stream, listener: Option<&UnixListener>) -> io::Result<()> {
    let listener = listener.ok_or_else(|| io::Error::from(rustix::io::Errno::NOENT));
    let listener =
        match listener.and_then(UnixListener::try_clone).and_then(tokio::net::UnixListener::from_std) {
            Ok(listener) => listener,
            Err(error) => return answer::<()>(&mut stream, Err(error)).await,
        };
    let mut client = tokio::select! {
        accepted = listener.accept() => answer(&mut stream, accepted).await?.0,
        // The host says nothing before it has a client: this is its end.
        _ = stream.read_u8() => return Ok(()),
    };
    let done = copy_bidirectional(&mut stream, &mut client).await;
    // An end that was cut short is one for both.
    let _ = client.shutdown().await;
    done.map(drop)
}
