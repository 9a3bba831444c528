//! Serves the request queue.

use std::io;

use nix::sys::epoll::EpollFlags;
use vm_memory::GuestMemoryMmap;

use super::disk::Disk;
use super::request::{Request, Segment, SegmentKind, Status, parse, parse_segment};
use super::{HEADER_LEN, SEGMENT_LEN};
use crate::virtio::device::{ActivateError, Activation, Interrupt};
use crate::virtio::queue::{Chain, DeviceQueue, QueueError};
use crate::virtio::worker::{Next, Poller, Serve, take_queue};

/// Requests of one turn: a pause waits for no more than these.
const REQUESTS_PER_TURN: usize = 32;

pub(super) struct BlkWorker {
    disk: Disk,
    memory: GuestMemoryMmap,
    queue: DeviceQueue,
    interrupt: Interrupt,
}

impl BlkWorker {
    /// Gives the disk back where it fails.
    pub(super) fn new(
        disk: Disk,
        mut activation: Activation,
        poller: &Poller,
    ) -> Result<Self, (Disk, ActivateError)> {
        let queue = take_queue(&mut activation, 0).and_then(|queue| {
            poller.add(&queue, 0, EpollFlags::EPOLLIN).map_err(ActivateError::Event)?;
            Ok(queue)
        });
        match queue {
            Ok(queue) => Ok(Self { disk, memory: activation.memory, queue, interrupt: activation.interrupt }),
            Err(error) => Err((disk, error)),
        }
    }

    pub(super) fn into_disk(self) -> Disk {
        self.disk
    }

    /// Carries a request out and writes its status; the bytes written to the guest.
    fn request(&self, chain: &Chain) -> u32 {
        let (status, written) = match self.execute(chain) {
            Ok(written) => (Status::Ok, written),
            Err(status) => {
                self.interrupt.count_error();
                (status, 0)
            }
        };
        // The status byte is the last writable one, so the data before it counts as written even where it is not:
        // the used length may only end behind what was written (virtio 1.2, section 2.7.8.2).
        let Some(at) = chain.writable_len().checked_sub(1) else { return 0 };
        if !chain.write(&self.memory, at as usize, &[status.byte()]) {
            return 0;
        }
        if status == Status::Ok { written.saturating_add(1) } else { 1 }
    }

    fn execute(&self, chain: &Chain) -> Result<u32, Status> {
        let mut header = [0; HEADER_LEN];
        if chain.fault.is_some() || !chain.read(&self.memory, 0, &mut header) {
            return Err(Status::IoErr);
        }
        let limits = self.disk.limits();
        let memory = &self.memory;
        match parse(&header, chain.readable_len(), chain.writable_len(), &limits)? {
            Request::Read(range) => {
                self.disk
                    .read(range, |offset, len| chain.writable_at(memory, offset, len))
                    .map_err(status)?;
                u32::try_from(range.len).map_err(|_| Status::IoErr)
            }
            Request::Write(range) => {
                let source = |offset, len| chain.readable_at(memory, HEADER_LEN + offset, len);
                self.disk.write(range, source).map_err(status)?;
                Ok(0)
            }
            Request::Flush => self.disk.flush().map(|()| 0).map_err(status),
            Request::GetId => {
                let id = self.disk.id();
                if chain.write(memory, 0, id) { Ok(id.len() as u32) } else { Err(Status::IoErr) }
            }
            Request::Discard { segments } => {
                for segment in self.segments(chain, segments, SegmentKind::Discard)? {
                    self.disk.discard(segment).map_err(status)?;
                }
                Ok(0)
            }
            Request::WriteZeroes { segments } => {
                for segment in self.segments(chain, segments, SegmentKind::WriteZeroes)? {
                    self.disk.write_zeroes(segment).map_err(status)?;
                }
                Ok(0)
            }
        }
    }

    /// Every segment is checked before the first is carried out.
    fn segments(&self, chain: &Chain, count: usize, kind: SegmentKind) -> Result<Vec<Segment>, Status> {
        let limits = self.disk.limits();
        (0..count)
            .map(|index| {
                let mut bytes = [0; SEGMENT_LEN];
                let at = HEADER_LEN + index * SEGMENT_LEN;
                if !chain.read(&self.memory, at, &mut bytes) {
                    return Err(Status::IoErr);
                }
                parse_segment(&bytes, kind, &limits)
            })
            .collect()
    }
}

fn status(error: io::Error) -> Status {
    if error.kind() == io::ErrorKind::Unsupported { Status::Unsupported } else { Status::IoErr }
}

impl Serve for BlkWorker {
    fn ready(&mut self, _token: u64, _events: EpollFlags) {
        self.queue.drain_kick();
    }

    fn turn(&mut self) -> Result<Next, QueueError> {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(chain) = self.queue.pop(&self.memory)? else {
                return Ok(if self.queue.want_kick(&self.memory)? { Next::Again } else { Next::Wait });
            };
            let written = self.request(&chain);
            self.queue.push(&self.memory, chain.head, written)?;
            self.queue.announce(&self.memory, &self.interrupt)?;
        }
        Ok(Next::Again)
    }

    fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

#[cfg(test)]
mod tests;
