//! Serves the transmit queue.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::epoll::EpollFlags;
use vm_memory::GuestMemoryMmap;

use super::{MAX_REQUEST, TRANSMIT};
use crate::virtio::device::{ActivateError, Activation, Interrupt};
use crate::virtio::queue::{Chain, DeviceQueue, QueueError};
use crate::virtio::worker::{Next, Poller, Serve, take_queue};

pub(super) struct ConsoleWorker {
    memory: GuestMemoryMmap,
    transmit: DeviceQueue,
    interrupt: Interrupt,
    output: Arc<OwnedFd>,
    dropped_bytes: Arc<AtomicU64>,
}

impl ConsoleWorker {
    pub(super) fn new(
        mut activation: Activation,
        output: Arc<OwnedFd>,
        dropped_bytes: Arc<AtomicU64>,
        poller: &Poller,
    ) -> Result<Self, ActivateError> {
        let transmit = take_queue(&mut activation, TRANSMIT)?;
        poller.add(&transmit, 0, EpollFlags::EPOLLIN).map_err(ActivateError::Event)?;
        let Activation { memory, interrupt, .. } = activation;
        Ok(Self { memory, transmit, interrupt, output, dropped_bytes })
    }

    fn write(&self, chain: &Chain) {
        let text = chain.readable_at(&self.memory, 0, MAX_REQUEST).filter(|_| chain.fault.is_none());
        let Some(text) = text else {
            self.interrupt.count_error();
            return;
        };
        if text.len() == 0 {
            return;
        }
        // An error is a full pipe or a reader that is gone: either way nobody reads it.
        let written = text.write(self.output.as_fd()).unwrap_or(0);
        let dropped = u64::from(chain.readable_len()).saturating_sub(written as u64);
        self.dropped_bytes.fetch_add(dropped, Ordering::Relaxed);
    }
}

impl Serve for ConsoleWorker {
    fn ready(&mut self, _token: u64, _events: EpollFlags) {
        self.transmit.drain_kick();
    }

    fn turn(&mut self) -> Result<Next, QueueError> {
        let mut next = Next::Again;
        for _ in 0..self.transmit.size() {
            let Some(chain) = self.transmit.pop(&self.memory)? else {
                next = if self.transmit.want_kick(&self.memory)? { Next::Again } else { Next::Wait };
                break;
            };
            self.write(&chain);
            self.transmit.push(&self.memory, chain.head, 0)?;
        }
        self.transmit.announce(&self.memory, &self.interrupt)?;
        Ok(next)
    }

    fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::console::{Console, QUEUE_SIZES};
    use crate::virtio::device::VirtioDevice;
    use crate::virtio::queue::BASE_FEATURES;
    use crate::virtio::testing::{Driver, HIGH, MockQueue, WRITE};
    use proptest::prelude::*;
    use std::io::{PipeReader, Read};

    struct Setup {
        driver: Driver,
        receive: MockQueue,
        transmit: MockQueue,
        console: Console,
        dropped: Arc<AtomicU64>,
        reader: PipeReader,
    }

    fn setup() -> Setup {
        let (reader, writer) = std::io::pipe().unwrap();
        let dropped = Arc::new(AtomicU64::new(0));
        let console = Console::new(writer.into(), Arc::clone(&dropped)).unwrap();
        let mut driver = Driver::new();
        let [receive, transmit] = QUEUE_SIZES.map(|size| driver.queue(size));
        Setup { driver, receive, transmit, console, dropped, reader }
    }

    impl Setup {
        fn worker(&self) -> ConsoleWorker {
            let activation = self.driver.activation(BASE_FEATURES, &[&self.receive, &self.transmit]);
            let (output, dropped) = (Arc::clone(&self.console.output), Arc::clone(&self.dropped));
            ConsoleWorker::new(activation, output, dropped, &Poller::new().unwrap()).unwrap()
        }

        fn read(&mut self, len: usize) -> Vec<u8> {
            let mut out = vec![0; len];
            self.reader.read_exact(&mut out).unwrap();
            out
        }
    }

    #[test]
    fn text_reaches_the_descriptor_through_the_thread() {
        let mut setup = setup();
        let (first, second) = (setup.driver.put(b"hello "), setup.driver.put(b"world"));
        setup.transmit.add(&[(first, 6, 0), (second, 5, 0)]);
        let activation = setup.driver.activation(BASE_FEATURES, &[&setup.receive, &setup.transmit]);
        setup.console.activate(activation).unwrap();
        setup.transmit.kick();
        assert_eq!(setup.read(11), b"hello world");
        setup.console.reset();
        assert_eq!(setup.transmit.used().len(), 1);
    }

    #[test]
    fn s33_text_that_nobody_reads_is_dropped_and_counted() {
        let mut setup = setup();
        let mut worker = setup.worker();
        for _ in 0..40 {
            setup.transmit.add(&[(HIGH.0, 64 * 1024, 0)]);
        }
        worker.turn().unwrap();
        assert_eq!(setup.transmit.used().len(), 40);
        let dropped = setup.dropped.load(Ordering::Relaxed);
        let held = 40 * 64 * 1024 - dropped;
        assert_eq!(setup.read(held as usize).len() as u64, held);
        let at = setup.driver.put(b"again");
        setup.transmit.add(&[(at, 5, 0)]);
        worker.turn().unwrap();
        assert_eq!(setup.read(5), b"again");
    }

    #[test]
    fn s33_one_huge_request_is_cut() {
        let mut setup = setup();
        let mut worker = setup.worker();
        setup.transmit.add(&[(HIGH.0, HIGH.1 as u32, 0)]);
        worker.turn().unwrap();
        let dropped = setup.dropped.load(Ordering::Relaxed);
        assert!(dropped as usize >= HIGH.1 - MAX_REQUEST);
    }

    #[test]
    fn reader_that_is_gone_costs_only_the_text() {
        let mut setup = setup();
        let mut worker = setup.worker();
        let at = setup.driver.put(b"lost");
        drop(std::mem::replace(&mut setup.reader, std::io::pipe().unwrap().0));
        setup.transmit.add(&[(at, 4, 0)]);
        worker.turn().unwrap();
        assert_eq!(setup.dropped.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn s04_s18_bad_buffers_are_counted_and_come_back() {
        let mut setup = setup();
        let mut worker = setup.worker();
        setup.transmit.add(&[(u64::MAX - 255, 512, 0)]);
        setup.transmit.add(&[(0x9000, 4, WRITE), (0x9000, 4, 0)]);
        setup.transmit.add(&[(0x9000, 4, WRITE)]);
        worker.turn().unwrap();
        assert_eq!(setup.transmit.used().len(), 3);
        assert_eq!(setup.driver.errors(), 2);
        assert_eq!(setup.dropped.load(Ordering::Relaxed), 0);
    }

    proptest! {
        #[test]
        fn s40_random_chains_come_back(
            chains in prop::collection::vec(
                prop::collection::vec((any::<u32>(), any::<u32>(), prop::bool::ANY), 1..4), 1..8),
        ) {
            let mut setup = setup();
            let mut worker = setup.worker();
            for chain in &chains {
                let buffers: Vec<_> = chain
                    .iter()
                    .map(|(addr, len, write)| (u64::from(*addr) % 0x30_0000, *len % 0x20_0000, if *write { WRITE } else { 0 }))
                    .collect();
                setup.transmit.add(&buffers);
            }
            worker.turn().unwrap();
            prop_assert_eq!(setup.transmit.used().len(), chains.len());
        }
    }
}
