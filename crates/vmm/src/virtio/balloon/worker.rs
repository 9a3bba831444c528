//! Serves the queues: takes pages from the guest and gives them to the host.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::epoll::EpollFlags;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use super::device::Shared;
use super::request::{ranges, whole_pages};
use super::{DEFLATE, F_REPORTING, INFLATE, MAX_PFNS, REPORTING};
use crate::virtio::device::{ActivateError, Activation, Interrupt};
use crate::virtio::queue::{Chain, DeviceQueue, QueueError};
use crate::virtio::sys::discard_private;
use crate::virtio::worker::{Next, Poller, Serve, take_queue};

/// Requests of each queue in one turn.
const REQUESTS_PER_TURN: usize = 16;

pub(super) struct BalloonWorker {
    memory: GuestMemoryMmap,
    inflate: DeviceQueue,
    deflate: DeviceQueue,
    reporting: Option<DeviceQueue>,
    interrupt: Interrupt,
    shared: Arc<Shared>,
}

impl BalloonWorker {
    pub(super) fn new(
        mut activation: Activation,
        shared: Arc<Shared>,
        poller: &Poller,
    ) -> Result<Self, ActivateError> {
        let (inflate, deflate) =
            (take_queue(&mut activation, INFLATE)?, take_queue(&mut activation, DEFLATE)?);
        let reports = activation.features & F_REPORTING != 0;
        let reporting = if reports { Some(take_queue(&mut activation, REPORTING)?) } else { None };
        for (token, queue) in (0..).zip([Some(&inflate), Some(&deflate), reporting.as_ref()]) {
            if let Some(queue) = queue {
                poller.add(queue, token, EpollFlags::EPOLLIN).map_err(ActivateError::Event)?;
            }
        }
        let Activation { memory, interrupt, .. } = activation;
        Ok(Self { memory, inflate, deflate, reporting, interrupt, shared })
    }

    fn inflate(&mut self) -> Result<bool, QueueError> {
        let (memory, interrupt) = (&self.memory, &self.interrupt);
        serve(&mut self.inflate, memory, interrupt, |chain| {
            let len = chain.readable_len() as usize;
            let mut bytes = [0; MAX_PFNS * 4];
            let numbers = bytes.get_mut(..len).filter(|_| len > 0 && len.is_multiple_of(4));
            let Some(numbers) = numbers.filter(|_| chain.fault.is_none()) else {
                interrupt.count_error();
                return;
            };
            if !chain.read(memory, 0, numbers) {
                interrupt.count_error();
                return;
            }
            for range in ranges(numbers) {
                give_back(memory, interrupt, range);
            }
        })
    }

    /// The guest uses its pages again: the host brings them at the first touch.
    fn deflate(&mut self) -> Result<bool, QueueError> {
        serve(&mut self.deflate, &self.memory, &self.interrupt, |_| {})
    }

    fn report(&mut self) -> Result<bool, QueueError> {
        let (memory, interrupt, shared) = (&self.memory, &self.interrupt, &self.shared);
        let Some(queue) = &mut self.reporting else { return Ok(false) };
        serve(queue, memory, interrupt, |chain| {
            for buffer in chain.writable() {
                let bytes = match whole_pages(buffer.addr.0, buffer.len) {
                    Some(range) => give_back(memory, interrupt, range),
                    None => 0,
                };
                shared.reported_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
        })
    }
}

/// Serves some requests. True: more wait.
fn serve(
    queue: &mut DeviceQueue,
    memory: &GuestMemoryMmap,
    interrupt: &Interrupt,
    mut request: impl FnMut(&Chain),
) -> Result<bool, QueueError> {
    let mut more = true;
    for _ in 0..REQUESTS_PER_TURN {
        let Some(chain) = queue.pop(memory)? else {
            more = queue.want_kick(memory)?;
            break;
        };
        request(&chain);
        queue.push(memory, chain.head, 0)?;
    }
    queue.announce(memory, interrupt)?;
    Ok(more)
}

/// Gives the part of a range that is guest memory to the host; its bytes. Counts a mistake for the rest.
fn give_back(memory: &GuestMemoryMmap, interrupt: &Interrupt, range: Range<u64>) -> u64 {
    let mut given = 0;
    for region in memory.iter() {
        let start = range.start.max(region.start_addr().0);
        let end = range.end.min(region.last_addr().0.saturating_add(1));
        if start >= end {
            continue;
        }
        match discard(memory, region, start..end) {
            Ok(()) => given += end - start,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(device = "balloon", error, "pages could not be given back");
            }
        }
    }
    if given != range.end - range.start {
        interrupt.count_error();
    }
    given
}

fn discard(memory: &GuestMemoryMmap, region: &GuestRegionMmap, range: Range<u64>) -> io::Result<()> {
    let len = range.end - range.start;
    match region.file_offset() {
        // The pages belong to the file, not to the mapping: only a hole in it frees them.
        Some(file) if region.flags() & libc::MAP_SHARED != 0 => {
            punch(file, range.start - region.start_addr().0, len)
        }
        _ => {
            let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
            discard_private(memory, GuestAddress(range.start), len)
        }
    }
}

fn punch(file: &FileOffset, offset: u64, len: u64) -> io::Result<()> {
    let offset = file.start().checked_add(offset).and_then(|offset| i64::try_from(offset).ok());
    let (Some(offset), Ok(len)) = (offset, i64::try_from(len)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        match fallocate(file.file(), flags, offset, len) {
            Err(Errno::EINTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

impl Serve for BalloonWorker {
    fn ready(&mut self, token: u64, _events: EpollFlags) {
        match usize::try_from(token) {
            Ok(INFLATE) => self.inflate.drain_kick(),
            Ok(DEFLATE) => self.deflate.drain_kick(),
            _ => {
                if let Some(queue) = &self.reporting {
                    queue.drain_kick();
                }
            }
        }
    }

    fn turn(&mut self) -> Result<Next, QueueError> {
        let more = self.inflate()? | self.deflate()? | self.report()?;
        Ok(if more { Next::Again } else { Next::Wait })
    }

    fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

#[cfg(test)]
mod tests;
