//! Offsets of the registers (virtio 1.2, section 4.2.2).

/// First byte of the configuration space.
pub(super) const CONFIG_SPACE: u64 = 0x100;

/// A word of a 64-bit address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Select {
    Low,
    High,
}

/// One of the three areas of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Area {
    Descriptors,
    Driver,
    Device,
}

/// A 32-bit register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    Magic,
    Version,
    DeviceId,
    VendorId,
    DeviceFeatures,
    DeviceFeaturesSelect,
    DriverFeatures,
    DriverFeaturesSelect,
    QueueSelect,
    QueueSizeMax,
    QueueSize,
    QueueReady,
    QueueNotify,
    InterruptStatus,
    InterruptAck,
    Status,
    QueueAddress(Area, Select),
    SharedMemory,
    ConfigGeneration,
}

impl Register {
    /// The register at the offset.
    pub(super) fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0x000 => Self::Magic,
            0x004 => Self::Version,
            0x008 => Self::DeviceId,
            0x00c => Self::VendorId,
            0x010 => Self::DeviceFeatures,
            0x014 => Self::DeviceFeaturesSelect,
            0x020 => Self::DriverFeatures,
            0x024 => Self::DriverFeaturesSelect,
            0x030 => Self::QueueSelect,
            0x034 => Self::QueueSizeMax,
            0x038 => Self::QueueSize,
            0x044 => Self::QueueReady,
            0x050 => Self::QueueNotify,
            0x060 => Self::InterruptStatus,
            0x064 => Self::InterruptAck,
            0x070 => Self::Status,
            0x080 => Self::QueueAddress(Area::Descriptors, Select::Low),
            0x084 => Self::QueueAddress(Area::Descriptors, Select::High),
            0x090 => Self::QueueAddress(Area::Driver, Select::Low),
            0x094 => Self::QueueAddress(Area::Driver, Select::High),
            0x0a0 => Self::QueueAddress(Area::Device, Select::Low),
            0x0a4 => Self::QueueAddress(Area::Device, Select::High),
            0x0b0 | 0x0b4 | 0x0b8 | 0x0bc => Self::SharedMemory,
            0x0fc => Self::ConfigGeneration,
            _ => return None,
        })
    }
}

/// Offset of QueueNotify: KVM signals the queue's event descriptor instead of leaving the guest.
pub const QUEUE_NOTIFY: u64 = 0x050;
