//! Moving bytes between a guest's stream and its place on the host.
//!
//! Between a socket and a FIFO the kernel moves pages (splice(2)); no byte is copied through this process. Both ends
//! do not block, and when a splice would, poll(2) tells which end it was.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Most bytes of one splice.
const CHUNK: usize = 1 << 20;

/// First and longest pause between two looks at a pipe that is read.
const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// The same of one whose reader has left, perhaps for good.
const HELD_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_HELD_PAUSE: Duration = Duration::from_secs(1);

/// Bytes of one read where the kernel cannot splice.
const BUFFER: usize = 64 * 1024;

/// Bytes that the streams of a process have moved: how a stalled stream is told from a slow one.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

impl Progress {
    fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// The bytes so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Moves everything until the end of file; one of the two is a pipe.
pub(super) async fn splice_all(
    from: &AsyncFd<OwnedFd>,
    to: &AsyncFd<OwnedFd>,
    progress: &Progress,
) -> io::Result<()> {
    loop {
        // Streams that never run dry must not keep the one thread of this process for themselves.
        tokio::task::consume_budget().await;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match splice(from.get_ref(), None, to.get_ref(), None, CHUNK, flags) {
            Ok(0) => return Ok(()),
            Ok(count) => progress.add(count),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for_both(from, to).await?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until one has bytes and the other has room.
async fn wait_for_both(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    loop {
        // The guard first: an event between the poll and the clearing is then not lost.
        let mut guard = from.readable().await?;
        if is_ready(from.get_ref(), PollFlags::IN)? {
            break;
        }
        guard.clear_ready();
    }
    loop {
        let mut guard = to.writable().await?;
        if is_ready(to.get_ref(), PollFlags::OUT)? {
            return Ok(());
        }
        guard.clear_ready();
    }
}

/// Whether the descriptor is ready, or has an error or end to report.
fn is_ready(fd: &OwnedFd, flags: PollFlags) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, flags)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(_) | Err(Errno::INTR) => Ok(!fds[0].revents().is_empty()),
        Err(error) => Err(error.into()),
    }
}

/// Waits until a pipe that nobody writes to any more is empty. Where its reader has left before, returns it with both ends. A kernel tells
/// writers of room, not of emptiness, so this looks, at first often.
pub(super) async fn wait_until_taken(
    pipe: AsyncFd<OwnedFd>,
    progress: &Progress,
) -> io::Result<Option<OwnedFd>> {
    let pipe = reopen(pipe.into_inner(), File::options().write(true))?;
    let (mut left, mut pause) = (ioctl_fionread(&pipe)?, PAUSE);
    while left > 0 {
        if is_ready(&pipe, PollFlags::empty())? {
            return reopen(pipe, File::options().read(true).write(true)).map(Some);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        let now = ioctl_fionread(&pipe)?;
        progress.add(usize::try_from(left.saturating_sub(now)).unwrap_or(usize::MAX));
        left = now;
    }
    Ok(None)
}

/// Holds a pipe for a reader that may come back, until one has taken everything: it then finds the end.
pub(super) async fn hold_until_taken(pipe: OwnedFd) -> io::Result<()> {
    let (mut left, mut pause) = (ioctl_fionread(&pipe)?, HELD_PAUSE);
    while left > 0 {
        tokio::time::sleep(pause).await;
        let now = ioctl_fionread(&pipe)?;
        // A reader is there, or there is none for long.
        pause = if now < left { HELD_PAUSE } else { (pause * 2).min(LONGEST_HELD_PAUSE) };
        left = now;
    }
    Ok(())
}

/// A pipe with other ends than it has here: who holds the reading one is a reader to the kernel.
fn reopen(pipe: OwnedFd, ends: &mut OpenOptions) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    Ok(ends.custom_flags(libc::O_NONBLOCK).open(path)?.into())
}

/// Reads everything until the end of file and gives it to `sink`.
pub(super) async fn read_all(
    from: &AsyncFd<OwnedFd>,
    progress: &Progress,
    mut sink: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = |fd: &OwnedFd| Ok(rustix::io::read(fd, &mut buffer[..])?);
        let count = match from.async_io(Interest::READABLE, read).await {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if count == 0 {
            return Ok(());
        }
        sink(&buffer[..count])?;
        progress.add(count);
        tokio::task::consume_budget().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn watched(fd: impl Into<OwnedFd>, interest: Interest) -> AsyncFd<OwnedFd> {
        let fd = fd.into();
        rustix::io::ioctl_fionbio(&fd, true).unwrap();
        crate::sys::watch(fd, interest).unwrap()
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index % 251) as u8).collect()
    }

    #[tokio::test]
    async fn socket_to_pipe_loses_nothing_with_a_slow_reader() {
        let (mut guest, ours) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let sent = pattern(3 << 20);
        let all = sent.clone();
        let feeder = std::thread::spawn(move || guest.write_all(&all).unwrap());
        let drainer = std::thread::spawn(move || {
            let mut got = Vec::new();
            let mut reader = std::fs::File::from(reader);
            let mut buffer = [0; 777];
            loop {
                match reader.read(&mut buffer).unwrap() {
                    0 => return got,
                    count => got.extend_from_slice(&buffer[..count]),
                }
            }
        });
        let progress = Progress::default();
        let (from, to) = (watched(ours, Interest::READABLE), watched(writer, Interest::WRITABLE));
        splice_all(&from, &to, &progress).await.unwrap();
        drop(to);
        feeder.join().unwrap();
        assert!(drainer.join().unwrap() == sent);
        assert_eq!(progress.bytes(), sent.len() as u64);
    }

    #[tokio::test]
    async fn pipe_to_socket_ends_with_the_last_writer() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::write(&writer, b"to the guest").unwrap();
        drop(writer);
        let (from, to) = (watched(reader, Interest::READABLE), watched(ours, Interest::WRITABLE));
        splice_all(&from, &to, &Progress::default()).await.unwrap();
        drop(to);
        let mut got = String::new();
        guest.read_to_string(&mut got).unwrap();
        assert_eq!(got, "to the guest");
    }

    #[tokio::test]
    async fn reader_that_went_away_is_an_error_not_a_hang() {
        let (mut guest, ours) = UnixStream::pair().unwrap();
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(reader);
        guest.write_all(b"x").unwrap();
        let (from, to) = (watched(ours, Interest::READABLE), watched(writer, Interest::WRITABLE));
        let error = splice_all(&from, &to, &Progress::default()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
