//! The event loop that every device's thread runs, and the handle by which the device steers it.
//!
//! ```text
//! spawn --> waits in epoll --> Serve::ready for each event --> Serve::turn --> waits again
//!             |  ^                                               |
//!             |  '---- resume ---- parked <---- pause -----------+  (a broken ring parks it for good)
//!             '------ stop: the thread ends and gives its Serve back
//! ```
//!
//! Pause and stop take effect between two turns, so nothing is in flight then: a turn finishes every request that
//! it began.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{ActivateError, Activation, ActiveQueue, Interrupt};
use super::queue::{DeviceQueue, QueueError};
use super::sys::event_fd;
use super::thread::spawn_worker;
use crate::jail::seccomp::ThreadKind;

/// Token of the control event; no device uses it.
const CONTROL: u64 = u64::MAX;

/// Events taken from the kernel at once.
const EVENTS: usize = 64;

/// When a device wants its next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// On the next event.
    Wait,
    /// As soon as the events that are there were looked at: work is left over.
    Again,
    /// After this time, or an event before.
    After(Duration),
}

/// What a device does on its thread.
pub(crate) trait Serve: Send + 'static {
    /// A watched descriptor is ready; called for each before a turn.
    fn ready(&mut self, token: u64, events: EpollFlags);

    /// Does a bounded amount of work.
    ///
    /// # Errors
    /// A ring is broken: DEVICE_NEEDS_RESET is latched and no turn follows.
    fn turn(&mut self) -> Result<Next, QueueError>;

    /// Where to tell the driver of a broken ring.
    fn interrupt(&self) -> &Interrupt;
}

/// The set of descriptors that a worker waits for.
#[derive(Clone)]
pub(crate) struct Poller(Arc<Epoll>);

impl Poller {
    /// An empty set.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)))
    }

    /// Watches a descriptor until it is closed.
    pub(crate) fn add(&self, fd: impl AsFd, token: u64, events: EpollFlags) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(events, token))?)
    }

    /// Changes what is waited for on a watched descriptor.
    pub(crate) fn modify(&self, fd: impl AsFd, token: u64, events: EpollFlags) -> io::Result<()> {
        Ok(self.0.modify(fd, &mut EpollEvent::new(events, token))?)
    }

    /// Watches a descriptor no more. Closing one does not do it where another process has it too.
    pub(crate) fn delete(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.0.delete(fd)?)
    }

    fn wait(&self, events: &mut [EpollEvent], next: Next) -> usize {
        let timeout = match next {
            Next::Wait => EpollTimeout::NONE,
            Next::Again => EpollTimeout::ZERO,
            // Rounded up, or the last millisecond would be a busy loop.
            Next::After(time) => u16::try_from(time.as_millis().saturating_add(1)).unwrap_or(u16::MAX).into(),
        };
        match self.0.wait(events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            // No other error can come of a valid set and buffer.
            Err(error) => unreachable!("epoll_wait: {error}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

struct State {
    wanted: Wanted,
    /// The thread is between turns and waits for `wanted` to change, or is over.
    quiet: bool,
}

struct Control {
    wake: EventFd,
    state: Mutex<State>,
    changed: Condvar,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is two plain words, valid at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, wanted: Wanted) {
        self.lock().wanted = wanted;
        self.changed.notify_all();
        // Full only where a wake-up is pending anyway.
        let _ = self.wake.write(1);
    }

    fn wait_until_quiet(&self) {
        let state = self.lock();
        drop(self.changed.wait_while(state, |state| !state.quiet));
    }

    /// Waits while paused, or (`for_good`) until the stop. False: stop.
    fn park(&self, for_good: bool) -> bool {
        let mut state = self.lock();
        while state.wanted == Wanted::Pause || (for_good && state.wanted != Wanted::Stop) {
            state.quiet = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.quiet = false;
        state.wanted == Wanted::Run
    }
}

/// Marks the thread as quiet however it ends, so that nobody waits for it in vain.
struct Finish(Arc<Control>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.lock().quiet = true;
        self.0.changed.notify_all();
    }
}

/// A running worker; dropped, it ends its thread.
pub(crate) struct Worker<S> {
    control: Arc<Control>,
    served: Arc<Mutex<Option<S>>>,
    thread: Option<JoinHandle<()>>,
}

impl<S> Worker<S> {
    fn end(&mut self) -> Option<S> {
        self.control.want(Wanted::Stop);
        let outcome = self.thread.take()?.join();
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner).take();
        outcome.ok().and(served)
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<S: Serve> Worker<S> {
    /// Starts a thread that serves what `poller` watches.
    ///
    /// # Errors
    /// The thread or its control event could not be made.
    pub(crate) fn spawn(
        kind: ThreadKind,
        name: &str,
        poller: Poller,
        serve: S,
    ) -> Result<Self, ActivateError> {
        let wake = new_event()?;
        poller.add(event_fd(&wake), CONTROL, EpollFlags::EPOLLIN).map_err(ActivateError::Event)?;
        let state = Mutex::new(State { wanted: Wanted::Run, quiet: false });
        let control = Arc::new(Control { wake, state, changed: Condvar::new() });
        let served = Arc::new(Mutex::new(None));
        let (inner, slot) = (Arc::clone(&control), Arc::clone(&served));
        let thread = spawn_worker(kind, name, move || {
            let finish = Finish(inner);
            let mut serve = serve;
            run(&finish.0, &poller, &mut serve);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(serve);
        })
        .map_err(ActivateError::Thread)?;
        Ok(Self { control, served, thread: Some(thread) })
    }

    /// Returns when the thread is between two turns and takes no other.
    pub(crate) fn pause(&self) {
        self.control.want(Wanted::Pause);
        self.control.wait_until_quiet();
    }

    /// Goes on after [`Worker::pause`].
    pub(crate) fn resume(&self) {
        self.control.want(Wanted::Run);
    }

    /// Ends the thread and gives back what it served; none where it panicked.
    pub(crate) fn stop(mut self) -> Option<S> {
        self.end()
    }
}

fn run(control: &Control, poller: &Poller, serve: &mut impl Serve) {
    let mut events = [EpollEvent::empty(); EVENTS];
    let mut next = Next::Again;
    loop {
        let count = poller.wait(&mut events, next);
        for event in events.iter().take(count) {
            if event.data() != CONTROL {
                serve.ready(event.data(), event.events());
                continue;
            }
            // Drained first: a request that comes after it wakes the loop again.
            let _ = control.wake.read();
            if !control.park(false) {
                return;
            }
        }
        next = match serve.turn() {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "device needs a reset");
                serve.interrupt().needs_reset();
                control.park(true);
                return;
            }
        };
    }
}

/// Lets a device work on its caller's thread until it has nothing to do, for tests without threads.
#[cfg(test)]
pub(crate) fn settle(poller: &Poller, serve: &mut impl Serve) -> Result<Next, QueueError> {
    let mut next = Next::Again;
    let mut events = [EpollEvent::empty(); EVENTS];
    for _ in 0..10_000 {
        let count = poller.wait(&mut events, Next::Again);
        if count == 0 && next != Next::Again {
            return Ok(next);
        }
        for event in events.iter().take(count) {
            serve.ready(event.data(), event.events());
        }
        next = serve.turn()?;
    }
    panic!("the device is never done");
}

/// A non-blocking event.
///
/// # Errors
/// [`ActivateError::Event`].
pub(crate) fn new_event() -> Result<EventFd, ActivateError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ActivateError::Event)
}

/// Takes queue `index` out of an activation and checks its rings.
///
/// # Errors
/// [`ActivateError::QueueNotReady`] where the driver left it out or its rings are not in memory.
pub(crate) fn take_queue(activation: &mut Activation, index: usize) -> Result<DeviceQueue, ActivateError> {
    let active: ActiveQueue =
        activation.queues.get_mut(index).and_then(Option::take).ok_or(ActivateError::QueueNotReady(index))?;
    DeviceQueue::new(active, activation.features, &activation.memory)
        .map_err(|_| ActivateError::QueueNotReady(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Counter {
        event: EventFd,
        seen: Arc<AtomicU64>,
        broken: bool,
        interrupt: Interrupt,
    }

    impl Serve for Counter {
        fn ready(&mut self, token: u64, _: EpollFlags) {
            assert_eq!(token, 1);
            self.seen.fetch_add(self.event.read().unwrap(), Ordering::SeqCst);
        }

        fn turn(&mut self) -> Result<Next, QueueError> {
            if self.broken && self.seen.load(Ordering::SeqCst) > 0 {
                return Err(QueueError::Rings);
            }
            Ok(Next::Wait)
        }

        fn interrupt(&self) -> &Interrupt {
            &self.interrupt
        }
    }

    fn counter(broken: bool) -> (Worker<Counter>, EventFd, Arc<AtomicU64>, Interrupt) {
        let (event, seen) = (new_event().unwrap(), Arc::new(AtomicU64::new(0)));
        let interrupt = Interrupt::new(new_event().unwrap(), Arc::default());
        let poller = Poller::new().unwrap();
        let kick = event.try_clone().unwrap();
        poller.add(event_fd(&event), 1, EpollFlags::EPOLLIN).unwrap();
        let serve = Counter { event, seen: Arc::clone(&seen), broken, interrupt: interrupt.clone() };
        let worker = Worker::spawn(ThreadKind::Rng, "counter", poller, serve).unwrap();
        (worker, kick, seen, interrupt)
    }

    fn wait_for(seen: &AtomicU64, value: u64) {
        while seen.load(Ordering::SeqCst) != value {
            std::thread::yield_now();
        }
    }

    #[test]
    fn paused_worker_serves_nothing_until_resumed() {
        let (worker, kick, seen, _) = counter(false);
        kick.write(1).unwrap();
        wait_for(&seen, 1);
        worker.pause();
        kick.write(1).unwrap();
        worker.pause();
        assert_eq!(seen.load(Ordering::SeqCst), 1);
        worker.resume();
        wait_for(&seen, 2);
        assert!(worker.stop().is_some());
    }

    #[test]
    fn v09_worker_of_a_broken_ring_is_latched_idle_and_stops_at_once() {
        let (worker, kick, seen, interrupt) = counter(true);
        kick.write(1).unwrap();
        wait_for(&seen, 1);
        worker.pause();
        assert!(interrupt.0.needs_reset.load(Ordering::SeqCst));
        worker.resume();
        kick.write(1).unwrap();
        worker.pause();
        assert_eq!(seen.load(Ordering::SeqCst), 1);
        worker.resume();
        assert!(worker.stop().is_some());
    }

    #[test]
    fn paused_worker_stops() {
        let (worker, _kick, _, _) = counter(false);
        worker.pause();
        assert!(worker.stop().is_some());
    }
}
