//! A non-blocking descriptor in the runtime.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{Shutdown, shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;

use crate::sys;

/// A pipe end, pseudo terminal master or stream socket that the agent reads or writes.
#[derive(Debug)]
pub struct AsyncStream(AsyncFd<OwnedFd>);

impl AsyncStream {
    /// Takes a descriptor and makes it non-blocking. The flag belongs to this end only: both ends of a pipe,
    /// pty or socket have open file descriptions of their own, so a container's end stays blocking.
    ///
    /// # Errors
    /// Those of fcntl(2) and epoll_ctl(2).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Self(sys::watch(fd, Interest::READABLE | Interest::WRITABLE)?))
    }

    /// Reads what is there, waiting for the first byte; 0 at the end.
    ///
    /// A container may close the last descriptor of its side and open it again (a pty, or a pipe through
    /// /proc/self/fd): the first close is the end here, since the runtime never forgets a hang-up and would spin.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.0.readable().await?;
            let closed = guard.ready().is_read_closed();
            match guard.try_io(|fd| retry(|| rustix::io::read(fd, &mut *buffer))) {
                Ok(result) => return result,
                Err(_would_block) if closed => return Ok(0),
                Err(_would_block) => {}
            }
        }
    }

    /// Reads without waiting.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_io(Interest::READABLE, |fd| retry(|| rustix::io::read(fd, &mut *buffer)))
    }

    /// Writes all of `bytes`.
    ///
    /// Tries before it waits, since [`reader_gone`](Self::reader_gone) forgets readiness.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match retry(|| rustix::io::write(self, bytes)) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.clear_writable();
                    // Full after a hang-up: opened again, see `read`.
                    if self.0.writable().await?.ready().is_write_closed()
                        && !self.state().contains(PollFlags::OUT)
                    {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until there is something to read; false where a hang-up was seen, after which waiting is of no use.
    pub(super) async fn readable(&self) -> bool {
        self.0.readable().await.is_ok_and(|guard| !guard.ready().is_read_closed())
    }

    /// Waits until something can be written, or never again will.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.0.writable().await.map(drop)
    }

    /// Waits until nobody will ever read what is written here: a pipe without readers, a pty without slaves, a
    /// socket that its peer has closed.
    ///
    /// Forgets write readiness on the way, so nobody may wait for [`writable`](Self::writable) meanwhile without
    /// having found by a system call that it is not writable now.
    pub(super) async fn reader_gone(&self) {
        loop {
            match self.0.writable().await {
                Ok(guard) if guard.ready().is_write_closed() => return,
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => return,
            }
        }
    }

    /// Waits until the peer of a socket has closed it, or has broken the rule that a stream has one direction by
    /// sending here. A peer that only shuts its sending side down stays.
    pub(super) async fn peer_gone(&self) {
        let mut byte = [0];
        if let Ok(0) = self.read(&mut byte).await {
            // No more from there for ever: what is left to wait for is the full close.
            self.reader_gone().await;
        }
    }

    /// Waits until the peer sends no more; what it sends is dropped.
    pub(super) async fn peer_done(&self) {
        let mut rest = [0; 64];
        while self.read(&mut rest).await.is_ok_and(|length| length > 0) {
            yield_now().await;
        }
    }

    /// What poll(2) says now.
    pub(super) fn state(&self) -> PollFlags {
        let mut fds = [PollFd::new(self, PollFlags::IN | PollFlags::OUT)];
        let now = Timespec::try_from(Duration::ZERO).ok();
        match poll(&mut fds, now.as_ref()) {
            Ok(_) => fds[0].revents(),
            // Interrupted, or out of memory: nothing is known, and the caller asks again.
            Err(_) => PollFlags::empty(),
        }
    }

    /// Forgets that it was readable, where it is not any more.
    pub(super) fn clear_readable(&self) {
        let _ = self.0.try_io(Interest::READABLE, |_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }

    /// Forgets that it was writable, where it is not any more.
    pub(super) fn clear_writable(&self) {
        let _ = self.0.try_io(Interest::WRITABLE, |_| Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }

    /// Ends the sending direction of a socket; what was written before still arrives.
    pub(super) fn shut_down_write(&self) {
        // Fails only where the peer is gone already.
        let _ = shutdown(self, Shutdown::Write);
    }
}

impl AsFd for AsyncStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}
