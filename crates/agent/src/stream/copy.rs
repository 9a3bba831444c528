//! Copying between a stream connection and a process's pipe or pseudo terminal.
//!
//! Every loop yields once a round: neither waiting for readiness nor writing does so where both sides are fast, and
//! all streams share one thread with the server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::fd::AsyncStream;

/// Most bytes that one splice(2) moves: the size of a pipe.
pub(super) const PIPE_SIZE: usize = 1 << 20;

/// Bytes of the one buffer of a stdin task.
const INPUT_BUFFER: usize = 64 << 10;

/// Bytes of the one buffer of a terminal's output task: more than a pty holds.
const TERMINAL_BUFFER: usize = 16 << 10;

/// How long a finished output stream waits for the host to close it, before the agent does.
const LINGER: Duration = Duration::from_secs(10);

/// Why an output task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The process's side has no writer left and is drained.
    Drained,
    /// The host's side is closed.
    PeerGone,
}

/// Moves a process's output to its stream: every byte up to the pipe's end, then the half-close.
///
/// Where the host goes away first, the read end is closed, which the process sees as SIGPIPE.
pub(super) async fn drain_pipe(pipe: AsyncStream, socket: AsyncStream) {
    let end = splice_all(&pipe, &socket).await;
    drop(pipe);
    finish_output(&socket, end).await;
}

/// Moves a terminal's output to its stream. Without a stream, or once its host side is gone, it is read and
/// dropped, since a full terminal would stop the process, and a terminal knows no SIGPIPE.
pub(super) async fn drain_terminal(master: Arc<AsyncStream>, socket: Option<AsyncStream>) {
    let mut buffer = vec![0; TERMINAL_BUFFER];
    let mut open = socket.as_ref();
    // EIO is how a master tells that no slave is open any more.
    while let Ok(length @ 1..) = master.read(&mut buffer).await {
        if let Some(socket) = open
            && socket.write_all(buffer.get(..length).unwrap_or_default()).await.is_err()
        {
            open = None;
        }
        yield_now().await;
    }
    drop(buffer);
    if let Some(socket) = open {
        finish_output(socket, End::Drained).await;
    }
}

async fn finish_output(socket: &AsyncStream, end: End) {
    if end == End::Drained {
        socket.shut_down_write();
        // The reading side closes first (docs/protocol.md); an early close of ours could overtake nothing, but a
        // host that sees it in place of the half-close might take it for a reset.
        let _ = timeout(LINGER, socket.peer_done()).await;
    }
}

async fn splice_all(pipe: &AsyncStream, socket: &AsyncStream) -> End {
    loop {
        match splice(pipe, None, socket, None, PIPE_SIZE, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Ok(0) => return End::Drained,
            // Others are served in between, however fast both sides are.
            Ok(_) | Err(Errno::INTR) => yield_now().await,
            Err(Errno::AGAIN) => {
                if let Some(end) = wait_for_both(pipe, socket).await {
                    return end;
                }
            }
            Err(_) => return End::PeerGone,
        }
    }
}

/// After EAGAIN: finds out which side is not ready and waits for it.
async fn wait_for_both(pipe: &AsyncStream, socket: &AsyncStream) -> Option<End> {
    if !pipe.state().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
        pipe.clear_readable();
        tokio::select! {
            waitable = pipe.readable() => {
                // A hang-up that poll(2) does not show: all writers left and one came back. See `read`.
                let empty = !pipe.state().intersects(PollFlags::IN | PollFlags::HUP);
                return (!waitable && empty).then_some(End::Drained);
            }
            () = socket.peer_gone() => return Some(End::PeerGone),
        }
    }
    let state = socket.state();
    if state.intersects(PollFlags::HUP | PollFlags::ERR) {
        return Some(End::PeerGone);
    }
    if state.contains(PollFlags::OUT) {
        // Became ready meanwhile: try again, after the others.
        yield_now().await;
    } else {
        socket.clear_writable();
        if socket.writable().await.is_err() {
            return Some(End::PeerGone);
        }
    }
    None
}

/// Moves a stream to a process's stdin until the stream's end, the process's end, or `close`: then what has
/// arrived is still delivered, and the pipe closed.
pub(super) async fn feed_pipe(socket: AsyncStream, pipe: AsyncStream, close: Arc<Notify>) {
    // Allocated with the first byte: most containers never read theirs.
    let mut buffer = Vec::new();
    loop {
        tokio::select! {
            biased;
            _ = socket.readable() => {}
            // Tells the host at once, by a reset, that nobody reads.
            () = pipe.reader_gone() => return,
            () = close.notified() => return feed_rest(&socket, &pipe).await,
        }
        buffer.resize(INPUT_BUFFER, 0);
        let length = match socket.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        if pipe.write_all(buffer.get(..length).unwrap_or_default()).await.is_err() {
            return;
        }
        yield_now().await;
    }
}

async fn feed_rest(socket: &AsyncStream, pipe: &AsyncStream) {
    let mut buffer = vec![0; INPUT_BUFFER];
    // Bounded by what the socket may buffer: the host holds no more credit than that, and after CloseStdin sends
    // no more.
    while let Ok(length @ 1..) = socket.try_read(&mut buffer) {
        if pipe.write_all(buffer.get(..length).unwrap_or_default()).await.is_err() {
            return;
        }
    }
}

/// Moves a stream to a terminal. Its end is not passed on: a terminal has none, and typing ^D is the user's.
pub(super) async fn feed_terminal(socket: AsyncStream, master: Arc<AsyncStream>) {
    let mut buffer = vec![0; 4096];
    loop {
        let read = tokio::select! {
            read = socket.read(&mut buffer) => read,
            () = master.reader_gone() => return,
        };
        let Ok(length @ 1..) = read else { return };
        if master.write_all(buffer.get(..length).unwrap_or_default()).await.is_err() {
            return;
        }
        yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    /// A pipe whose only writer has left, which the runtime has seen, and come back: containers can do that with a
    /// handle (O_PATH) on the pipe. The runtime remembers the hang-up for ever, so waiting would spin.
    async fn reopened_pipe() -> (AsyncStream, File) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let path = format!("/proc/self/fd/{}", read.as_raw_fd());
        let pipe = AsyncStream::new(read).unwrap();
        drop(write);
        while pipe.readable().await {
            yield_now().await;
        }
        (pipe, File::options().write(true).open(path).unwrap())
    }

    #[tokio::test]
    async fn pipe_that_a_writer_came_back_to_counts_as_ended_when_spliced() {
        let (pipe, _writer) = reopened_pipe().await;
        let (socket, _peer) = UnixStream::pair().unwrap();
        let socket = AsyncStream::new(socket.into()).unwrap();
        let end = timeout(Duration::from_secs(10), splice_all(&pipe, &socket)).await;
        assert_eq!(end, Ok(End::Drained));
    }

    #[tokio::test]
    async fn pipe_that_a_writer_came_back_to_counts_as_ended_when_read() {
        let (pipe, _writer) = reopened_pipe().await;
        let read = timeout(Duration::from_secs(10), pipe.read(&mut [0; 8])).await;
        assert!(matches!(read, Ok(Ok(0))), "{read:?}");
    }
}
