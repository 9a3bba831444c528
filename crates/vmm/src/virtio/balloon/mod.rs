//! The memory balloon (virtio 1.2, section 5.5) with free page reporting.
//!
//! | queue | who fills it | what happens |
//! |---|---|---|
//! | 0 inflate | the guest gives pages up | they go back to the host |
//! | 1 deflate | the guest takes pages back | nothing: the next touch brings a zero page |
//! | 2 reporting | the guest tells of pages that are free now | they go back to the host |
//!
//! The specification counts optional queues whether they are there or not, Linux counts those that are offered. Statistics
//! and free page hints are not offered, so for Linux reporting is queue 2.
//!
//! Whatever numbers the guest writes, only whole pages within guest memory are touched, and losing them hurts nobody
//! but the guest (V13, S32).

mod device;
mod request;
mod worker;

pub use device::{Balloon, BalloonHandle};

/// VIRTIO_ID_BALLOON.
const DEVICE_ID: u32 = 5;

/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;

/// VIRTIO_BALLOON_F_PAGE_REPORTING.
const F_REPORTING: u64 = 1 << 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORTING: usize = 2;
const QUEUE_SIZES: [u16; 3] = [64, 64, 64];

/// The balloon's page, whatever the guest's (virtio 1.2, section 5.5.6.1).
const PAGE: u64 = 4096;

/// Page numbers of one request; Linux sends 256.
const MAX_PFNS: usize = 4096;
