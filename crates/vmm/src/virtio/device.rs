//! What the MMIO transport and a device know of each other.
//!
//! The transport owns the registers, the status machine and feature negotiation; a device sees nothing of a
//! guest before [`VirtioDevice::activate`], and nothing after [`VirtioDevice::reset`] returned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// A virtio device behind one MMIO slot.
pub trait VirtioDevice: Send {
    /// Device id (virtio 1.2, section 5).
    fn device_id(&self) -> u32;

    /// Largest size of each virtqueue; the length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Feature bits that the device offers, VIRTIO_F_VERSION_1 included, never VIRTIO_F_RING_PACKED.
    fn features(&self) -> u64;

    /// Copies from the configuration space at `offset`; bytes past its end are zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the configuration space; what is read-only or past its end is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver set DRIVER_OK: start to serve the queues, usually on a thread of the device's own.
    ///
    /// # Errors
    /// The transport then latches DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver wrote 0 to status, or the device is unplugged. On return no queue is served any more and guest
    /// memory is not touched again before the next activation.
    fn reset(&mut self);

    /// Stop serving queues, finish what is in flight, and keep the state (VM pause).
    fn pause(&mut self) {}

    /// Go on after [`VirtioDevice::pause`].
    fn resume(&mut self) {}
}

/// All that a driver has set up, handed to the device at DRIVER_OK.
pub struct Activation {
    /// Guest memory. A descriptor's address is checked by every access to it.
    pub memory: GuestMemoryMmap,
    /// Feature bits that driver and device agreed on.
    pub features: u64,
    /// One entry for each queue of [`VirtioDevice::queue_sizes`]; none where the driver left it not ready.
    pub queues: Vec<Option<ActiveQueue>>,
    /// How to interrupt the driver.
    pub interrupt: Interrupt,
}

/// A queue that the driver made ready, validated.
pub struct ActiveQueue {
    /// Addresses, size and ring positions.
    pub queue: Queue,
    /// Signalled by the kernel when the driver notifies the queue (ioeventfd).
    pub kick: EventFd,
}

/// Interrupts towards the driver, shared between a slot's transport and its device's threads.
#[derive(Clone)]
pub struct Interrupt(pub(crate) Arc<InterruptState>);

pub(crate) struct InterruptState {
    /// InterruptStatus register (virtio 1.2, section 4.2.2).
    pub(crate) status: AtomicU32,
    /// irqfd of the slot's line.
    pub(crate) line: EventFd,
    /// The transport reads it as DEVICE_NEEDS_RESET in the status register.
    pub(crate) needs_reset: AtomicBool,
    /// ConfigGeneration register.
    pub(crate) config_generation: AtomicU32,
    /// Guest mistakes that devices refused, over the whole VM.
    pub(crate) device_errors: Arc<AtomicU64>,
}

/// InterruptStatus bit: the device used a buffer.
pub(crate) const INT_VRING: u32 = 1 << 0;
/// InterruptStatus bit: the device's configuration changed.
pub(crate) const INT_CONFIG: u32 = 1 << 1;

impl Interrupt {
    /// Interrupts on `line`; mistakes are counted in `device_errors`.
    pub fn new(line: EventFd, device_errors: Arc<AtomicU64>) -> Self {
        Self(Arc::new(InterruptState {
            status: AtomicU32::new(0),
            line,
            needs_reset: AtomicBool::new(false),
            config_generation: AtomicU32::new(0),
            device_errors,
        }))
    }

    /// Tells the driver that used buffers wait for it.
    pub fn used_buffers(&self) {
        self.raise(INT_VRING);
    }

    /// Tells the driver that the configuration space has changed; call it after the change.
    pub fn config_changed(&self) {
        self.0.config_generation.fetch_add(1, Ordering::AcqRel);
        self.raise(INT_CONFIG);
    }

    /// The driver broke the protocol so that a queue cannot go on (virtio 1.2, section 2.1.2): counts the mistake,
    /// latches DEVICE_NEEDS_RESET and tells the driver. The device then leaves its queues alone until a reset.
    pub fn needs_reset(&self) {
        self.count_error();
        self.0.needs_reset.store(true, Ordering::Release);
        self.raise(INT_CONFIG);
    }

    /// Counts a mistake of the driver that cost only the request it was in.
    pub fn count_error(&self) {
        self.0.device_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// InterruptStatus as the driver reads it.
    pub(crate) fn pending(&self) -> u32 {
        self.0.status.load(Ordering::Acquire)
    }

    /// The driver wrote InterruptACK.
    pub(crate) fn acknowledge(&self, bits: u32) {
        self.0.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Whether DEVICE_NEEDS_RESET is latched.
    pub(crate) fn wants_reset(&self) -> bool {
        self.0.needs_reset.load(Ordering::Acquire)
    }

    /// ConfigGeneration as the driver reads it.
    pub(crate) fn config_generation(&self) -> u32 {
        self.0.config_generation.load(Ordering::Acquire)
    }

    /// The driver reset the device.
    pub(crate) fn reset(&self) {
        self.0.needs_reset.store(false, Ordering::Release);
        self.0.status.store(0, Ordering::Release);
    }

    fn raise(&self, bits: u32) {
        self.0.status.fetch_or(bits, Ordering::AcqRel);
        // The counter of an eventfd is full only where an interrupt is long pending: nothing is lost then.
        let _ = self.0.line.write(1);
    }
}

/// A device that could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left a queue not ready that the device cannot work without.
    #[error("queue {0} is not ready")]
    QueueNotReady(usize),
    /// A thread could not be started.
    #[error("the device's thread could not be started")]
    Thread(#[source] std::io::Error),
    /// An event descriptor could not be made or watched.
    #[error("an event descriptor could not be set up")]
    Event(#[source] std::io::Error),
    /// The device's host side refused.
    #[error("the device's host side refused")]
    Backend(#[source] std::io::Error),
}
