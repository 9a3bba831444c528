//! Turns the server's events into interrupts, and its death into a request for a reset.

use std::os::unix::net::UnixStream;

use nix::sys::epoll::EpollFlags;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::device::{ActivateError, Interrupt};
use crate::virtio::queue::QueueError;
use crate::virtio::sys::event_fd;
use crate::virtio::worker::{Next, Poller, Serve};

/// Token of the server's socket; the queues have theirs by number.
const SOCKET: u64 = 1 << 32;

pub(super) struct FsWorker {
    calls: Vec<EventFd>,
    interrupt: Interrupt,
    used: bool,
    gone: bool,
}

impl FsWorker {
    pub(super) fn new(
        calls: Vec<EventFd>,
        socket: &UnixStream,
        interrupt: Interrupt,
        poller: &Poller,
    ) -> Result<Self, ActivateError> {
        for (token, call) in (0..).zip(&calls) {
            poller.add(event_fd(call), token, EpollFlags::EPOLLIN).map_err(ActivateError::Event)?;
        }
        // Replies belong to the session; only the end of the connection is looked for here.
        let end = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        poller.add(socket, SOCKET, end).map_err(ActivateError::Event)?;
        Ok(Self { calls, interrupt, used: false, gone: false })
    }
}

impl Serve for FsWorker {
    fn ready(&mut self, token: u64, _events: EpollFlags) {
        if token == SOCKET {
            self.gone = true;
            return;
        }
        if let Some(call) = usize::try_from(token).ok().and_then(|index| self.calls.get(index)) {
            let _ = call.read();
            self.used = true;
        }
    }

    fn turn(&mut self) -> Result<Next, QueueError> {
        if std::mem::take(&mut self.used) {
            self.interrupt.used_buffers();
        }
        if self.gone { Err(QueueError::Backend) } else { Ok(Next::Wait) }
    }

    fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}
