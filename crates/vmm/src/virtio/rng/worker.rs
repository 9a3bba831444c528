//! Serves the request queue.

use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use vm_memory::GuestMemoryMmap;

use super::limit::Limit;
use super::{BURST, MAX_REQUEST, RATE};
use crate::virtio::device::{ActivateError, Activation, Interrupt};
use crate::virtio::queue::{Chain, DeviceQueue, QueueError};
use crate::virtio::worker::{Next, Poller, Serve, take_queue};

pub(super) struct RngWorker {
    memory: GuestMemoryMmap,
    queue: DeviceQueue,
    interrupt: Interrupt,
    limit: Limit,
}

impl RngWorker {
    pub(super) fn new(mut activation: Activation, poller: &Poller) -> Result<Self, ActivateError> {
        let queue = take_queue(&mut activation, 0)?;
        poller.add(&queue, 0, EpollFlags::EPOLLIN).map_err(ActivateError::Event)?;
        let limit = Limit::new(BURST, RATE, Instant::now());
        Ok(Self { memory: activation.memory, queue, interrupt: activation.interrupt, limit })
    }

    /// Fills one request as far as the limit goes; none: it has to wait.
    fn fill(&mut self, chain: &Chain) -> Option<u32> {
        let wanted = chain.writable_len().min(MAX_REQUEST);
        if chain.fault.is_some() || wanted == 0 {
            self.interrupt.count_error();
            return Some(0);
        }
        let granted = self.limit.take(wanted.into(), Instant::now());
        let granted_len = usize::try_from(granted).ok()?;
        if granted == 0 {
            return None;
        }
        let filled =
            chain.writable_at(&self.memory, 0, granted_len).and_then(|mut list| list.fill_random().ok());
        let filled = filled.unwrap_or_else(|| {
            self.limit.give_back(granted);
            self.interrupt.count_error();
            0
        });
        // At most MAX_REQUEST.
        u32::try_from(filled).ok()
    }

    fn serve(&mut self) -> Result<Next, QueueError> {
        for _ in 0..self.queue.size() {
            let Some(chain) = self.queue.pop(&self.memory)? else {
                return Ok(if self.queue.want_kick(&self.memory)? { Next::Again } else { Next::Wait });
            };
            let Some(written) = self.fill(&chain) else {
                self.queue.unpop();
                return Ok(Next::After(self.limit.delay()));
            };
            self.queue.push(&self.memory, chain.head, written)?;
        }
        Ok(Next::Again)
    }
}

impl Serve for RngWorker {
    fn ready(&mut self, _token: u64, _events: EpollFlags) {
        self.queue.drain_kick();
    }

    fn turn(&mut self) -> Result<Next, QueueError> {
        let next = self.serve()?;
        self.queue.announce(&self.memory, &self.interrupt)?;
        Ok(next)
    }

    fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::device::VirtioDevice;
    use crate::virtio::queue::BASE_FEATURES;
    use crate::virtio::rng::{QUEUE_SIZE, Rng};
    use crate::virtio::testing::{Driver, LOW, MockQueue, NEXT, WRITE};
    use proptest::prelude::*;

    fn setup() -> (Driver, MockQueue, RngWorker) {
        let mut driver = Driver::new();
        let mock = driver.queue(QUEUE_SIZE);
        let activation = driver.activation(BASE_FEATURES, &[&mock]);
        let worker = RngWorker::new(activation, &Poller::new().unwrap()).unwrap();
        (driver, mock, worker)
    }

    #[test]
    fn request_is_filled_with_random_bytes() {
        let (mut driver, mut mock, mut worker) = setup();
        let (first, second) = (driver.place(32), driver.place(32));
        let head = mock.add(&[(first, 32, WRITE), (second, 32, WRITE)]);
        assert_eq!(worker.turn().unwrap(), Next::Wait);
        assert_eq!(mock.used(), [(head, 64)]);
        assert!(driver.take_interrupt());
        assert_ne!(driver.get(first, 32), vec![0; 32]);
        assert_ne!(driver.get(first, 32), driver.get(second, 32));
    }

    #[test]
    fn s34_large_requests_are_capped_and_then_wait() {
        let (driver, mut mock, mut worker) = setup();
        worker.limit = Limit::new(BURST, 1, Instant::now());
        for _ in 0..QUEUE_SIZE {
            mock.add(&[(0x10000, 512 * 1024, WRITE)]);
        }
        let next = worker.turn().unwrap();
        assert!(matches!(next, Next::After(time) if !time.is_zero()), "{next:?}");
        let used = mock.used();
        assert!(used.iter().all(|(_, len)| *len <= MAX_REQUEST));
        let total: u64 = used.iter().map(|(_, len)| u64::from(*len)).sum();
        assert_eq!(total, BURST);
        assert_eq!(driver.errors(), 0);
    }

    #[test]
    fn s34_read_only_and_unreachable_buffers_come_back_empty() {
        let (driver, mut mock, mut worker) = setup();
        mock.add(&[(0x9000, 16, 0)]);
        mock.add(&[(LOW.1 as u64 - 8, 16, WRITE)]);
        mock.add(&[(u64::MAX - 255, 512, WRITE)]);
        worker.turn().unwrap();
        assert!(mock.used().iter().all(|(_, len)| *len == 0));
        assert_eq!(driver.errors(), 3);
    }

    #[test]
    fn driver_is_served_by_the_thread_and_again_after_a_reset() {
        let mut rng = Rng::new();
        for _ in 0..3 {
            let mut driver = Driver::new();
            let mut mock = driver.queue(QUEUE_SIZE);
            rng.activate(driver.activation(BASE_FEATURES, &[&mock])).unwrap();
            mock.add(&[(0x9000, 16, WRITE)]);
            mock.kick();
            while mock.used().is_empty() {
                std::thread::yield_now();
            }
            rng.reset();
        }
    }

    #[test]
    fn v09_looping_chain_latches_needs_reset() {
        let mut driver = Driver::new();
        let mut mock = driver.queue(QUEUE_SIZE);
        mock.set(0, 0x9000, 1, NEXT | WRITE, 0);
        mock.offer(0);
        let mut rng = Rng::new();
        rng.activate(driver.activation(BASE_FEATURES, &[&mock])).unwrap();
        while !driver.needs_reset() {
            std::thread::yield_now();
        }
        rng.reset();
        assert!(mock.used().is_empty());
    }

    proptest! {
        #[test]
        fn s40_random_chains_neither_panic_nor_hang(
            chains in prop::collection::vec(
                prop::collection::vec((any::<u32>(), any::<u32>(), prop::bool::ANY), 1..4), 1..8),
        ) {
            let (_driver, mut mock, mut worker) = setup();
            for chain in &chains {
                let buffers: Vec<_> = chain
                    .iter()
                    .map(|(addr, len, write)| (u64::from(*addr), *len, if *write { WRITE } else { 0 }))
                    .collect();
                mock.add(&buffers);
            }
            worker.turn().unwrap();
            prop_assert!(mock.used().len() <= chains.len());
        }
    }
}
