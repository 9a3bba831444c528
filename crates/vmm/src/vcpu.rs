//! vCPU threads: each runs its vCPU until the guest or the owner ends the machine.
//!
//! ```text
//!   Run ------ pause ------> Pause (every thread waits in `Gate`)
//!    ^                         |
//!    +-------- resume ---------+
//!    |         |
//!    +- stop --+--> Stop: the threads end
//! ```
//!
//! A thread in the guest is kicked out by a signal (see [`kvm::leave_guest`]); the one that finds the guest to be over reports
//! why and ends.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};

use kvm_ioctls::{VcpuExit, VcpuFd};
use nacre_protocol::control::ExitReason;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::bus::{Bus, Effect};
use crate::jail::seccomp::ThreadKind;
use crate::kvm::{self, RunGuard};
use crate::sys;
use crate::virtio::thread::spawn_worker;

const RUN: u8 = 0;
const PAUSE: u8 = 1;
const STOP: u8 = 2;

/// vCPU threads that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The kick signal has no handler.
    #[error("the signal that kicks vCPUs could not be set up")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// A thread could not be made.
    #[error("the thread of vCPU {0} could not be started")]
    Thread(u8, #[source] io::Error),
}

/// Tells the control loop why the guest is over.
#[derive(Debug, Clone)]
pub struct ExitReporter {
    reasons: Sender<ExitReason>,
    wake: Arc<EventFd>,
}

impl ExitReporter {
    /// Reports over `reasons` and then signals `wake`.
    pub fn new(reasons: Sender<ExitReason>, wake: Arc<EventFd>) -> Self {
        Self { reasons, wake }
    }

    fn report(&self, reason: ExitReason) {
        // The receiver goes only with the process; the counter is full only after 2^64 reports.
        let _ = self.reasons.send(reason);
        let _ = self.wake.write(1);
    }
}

/// What all vCPU threads of a machine wait for.
struct Gate {
    wanted: AtomicU8,
    waiting: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, usize> {
        // A count is whole at any time.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread ends by itself; whoever pauses the machine need not wait for it.
    fn leave(&self) {
        *self.lock() += 1;
        self.changed.notify_all();
    }

    /// Blocks a vCPU thread while the machine is paused. False: the thread has to end.
    fn pass(&self) -> bool {
        let mut waiting = self.lock();
        if self.wanted.load(Ordering::Acquire) == PAUSE {
            *waiting += 1;
            self.changed.notify_all();
            waiting = self
                .changed
                .wait_while(waiting, |_| self.wanted.load(Ordering::Acquire) == PAUSE)
                .unwrap_or_else(PoisonError::into_inner);
            *waiting -= 1;
        }
        self.wanted.load(Ordering::Acquire) != STOP
    }
}

/// The vCPU threads of a running machine.
pub struct Vcpus {
    gate: Arc<Gate>,
    threads: Vec<i32>,
    kick: i32,
}

impl Vcpus {
    /// Starts a thread for each vCPU; they wait for [`Vcpus::resume`].
    ///
    /// # Errors
    /// [`VcpuError`].
    pub fn start_paused(vcpus: Vec<VcpuFd>, bus: &Arc<Bus>, exits: &ExitReporter) -> Result<Self, VcpuError> {
        let kick = SIGRTMIN();
        register_signal_handler(kick, kvm::leave_guest).map_err(VcpuError::Signal)?;
        let gate =
            Arc::new(Gate { wanted: AtomicU8::new(PAUSE), waiting: Mutex::new(0), changed: Condvar::new() });
        let mut threads = Vec::with_capacity(vcpus.len());
        for (id, fd) in (0u8..).zip(vcpus) {
            let vcpu = Vcpu { id, fd, gate: Arc::clone(&gate), bus: Arc::clone(bus), exits: exits.clone() };
            let (tell, told) = mpsc::sync_channel(1);
            spawn_worker(ThreadKind::Vcpu, &format!("vcpu{id}"), move || {
                let _ = tell.send(nix::unistd::gettid().as_raw());
                vcpu.run();
            })
            .map_err(|source| VcpuError::Thread(id, source))?;
            threads.push(told.recv().map_err(|error| VcpuError::Thread(id, io::Error::other(error)))?);
        }
        Ok(Self { gate, threads, kick })
    }

    /// Returns when no vCPU runs.
    pub fn pause(&self) {
        self.want(PAUSE);
        let waiting = self.gate.lock();
        drop(self.gate.changed.wait_while(waiting, |waiting| *waiting < self.threads.len()));
    }

    /// Lets the vCPUs go on.
    pub fn resume(&self) {
        self.want(RUN);
    }

    /// Tells every thread to end.
    pub fn stop(&self) {
        self.want(STOP);
    }

    /// Thread ids, by vCPU.
    pub fn thread_ids(&self) -> &[i32] {
        &self.threads
    }

    fn want(&self, wanted: u8) {
        let waiting = self.gate.lock();
        self.gate.wanted.store(wanted, Ordering::Release);
        self.gate.changed.notify_all();
        drop(waiting);
        if wanted != RUN {
            for thread in &self.threads {
                // A thread that is gone needs no kick.
                let _ = sys::signal_thread(*thread, self.kick);
            }
        }
    }
}

struct Vcpu {
    id: u8,
    fd: VcpuFd,
    gate: Arc<Gate>,
    bus: Arc<Bus>,
    exits: ExitReporter,
}

/// What a return of KVM_RUN leads to.
enum Next {
    Run,
    /// Kicked: look at the gate first.
    Gate,
    Over(ExitReason),
}

impl Vcpu {
    fn run(mut self) {
        let _kicks_reach = RunGuard::new(&mut self.fd);
        if self.gate.wanted.load(Ordering::Acquire) != RUN && !self.gate.pass() {
            return;
        }
        loop {
            match self.step() {
                Next::Run => {}
                Next::Gate => {
                    // Before the gate is read: a kick from here on makes the next KVM_RUN return.
                    self.fd.set_kvm_immediate_exit(0);
                    let paused = self.gate.wanted.load(Ordering::Acquire) == PAUSE;
                    if !self.gate.pass() {
                        return;
                    }
                    if paused {
                        // Tells the guest's watchdogs that it was stopped; refused before it has set up kvmclock.
                        let _ = self.fd.kvmclock_ctrl();
                    }
                }
                Next::Over(reason) => {
                    self.bus.flush_serial();
                    self.exits.report(reason);
                    self.gate.leave();
                    return;
                }
            }
        }
    }

    /// Runs the guest up to its next exit and serves it.
    fn step(&mut self) -> Next {
        let error = match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.bus.mmio_read(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.bus.mmio_write(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.bus.port_read(port, data);
                return Next::Run;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                return match self.bus.port_write(port, data) {
                    Effect::None => Next::Run,
                    Effect::Reset => Next::Over(ExitReason::GuestReset),
                };
            }
            // A triple fault: the way out that the kernel is told to take (reboot=t).
            Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(..)) => return Next::Over(ExitReason::GuestReset),
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => return Next::Gate,
            Ok(VcpuExit::InternalError) => None,
            Ok(exit) => Some(format!("unexpected exit {exit:?}")),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Next::Gate,
            Err(error) => Some(format!("KVM_RUN: {error}")),
        };
        let message =
            error.unwrap_or_else(|| format!("KVM internal error {}", kvm::internal_error_code(&mut self.fd)));
        Next::Over(ExitReason::VcpuFailed { vcpu: self.id, message })
    }
}
