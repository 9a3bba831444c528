//! The device towards the transport, and what the tap can do.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};

use super::worker::NetWorker;
use super::{CONFIG_LEN, DEVICE_ID, HEADER_LEN, LINK_LEN, MAX_FRAME, QUEUE_SIZES};
use crate::jail::seccomp::ThreadKind;
use crate::virtio::config::{put, read};
use crate::virtio::device::{ActivateError, Activation, VirtioDevice};
use crate::virtio::queue::BASE_FEATURES;
use crate::virtio::sys::{tap_set_header_size, tap_set_offload};
use crate::virtio::worker::{Poller, Worker};

/// Offload flags of a tap (include/uapi/linux/if_tun.h).
const TUN_F_CSUM: u32 = 1;
const TUN_F_TSO4: u32 = 2;
const TUN_F_TSO6: u32 = 4;

const GUEST_OFFLOADS: u64 =
    1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;

/// A link that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The descriptor does not take what a tap with IFF_VNET_HDR takes.
    #[error("the descriptor is no tap with packet headers")]
    Tap(#[source] io::Error),
    /// Below what IPv4 needs.
    #[error("an mtu of {0} is below 68")]
    Mtu(u16),
}

/// A virtio-net device.
pub struct Net {
    tap: Arc<OwnedFd>,
    config: [u8; CONFIG_LEN],
    mtu: u16,
    features: u64,
    worker: Option<Worker<NetWorker>>,
}

impl Net {
    /// A link on a tap that was made with IFF_NO_PI and IFF_VNET_HDR.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn new(tap: OwnedFd, mac: [u8; 6], mtu: u16) -> Result<Self, NetError> {
        if mtu < 68 {
            return Err(NetError::Mtu(mtu));
        }
        let flags = fcntl(&tap, FcntlArg::F_GETFL).map_err(|error| NetError::Tap(error.into()))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&tap, FcntlArg::F_SETFL(flags)).map_err(|error| NetError::Tap(error.into()))?;
        // 12 bytes.
        tap_set_header_size(tap.as_fd(), HEADER_LEN as i32).map_err(NetError::Tap)?;
        let offloads = tap_set_offload(tap.as_fd(), TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6).is_ok();
        tap_set_offload(tap.as_fd(), 0).map_err(NetError::Tap)?;
        Ok(Self::on(tap, mac, mtu, offloads))
    }

    /// Without a look at the tap. What the guest leaves undone costs the tap's side nothing to accept; what the tap leaves
    /// undone must be asked of it.
    fn on(tap: OwnedFd, mac: [u8; 6], mtu: u16, offloads: bool) -> Self {
        let always = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_MTU,
        ];
        let mut features = always.iter().fold(BASE_FEATURES, |features, bit| features | 1 << bit);
        if offloads {
            features |= GUEST_OFFLOADS;
        }
        let mut config = [0; CONFIG_LEN];
        put(&mut config, 0, &mac);
        put(&mut config, 10, &mtu.to_le_bytes());
        Self { tap: Arc::new(tap), config, mtu, features, worker: None }
    }
}

/// What to ask of the tap for the features that the driver took.
fn offload_flags(features: u64) -> u32 {
    let has = |bit: u32| features & (1 << bit) != 0;
    if !has(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let segments = [(VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4), (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6)];
    segments.iter().filter(|(bit, _)| has(*bit)).fold(TUN_F_CSUM, |flags, (_, flag)| flags | flag)
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let offloads = offload_flags(activation.features);
        if self.features & GUEST_OFFLOADS != 0 {
            tap_set_offload(self.tap.as_fd(), offloads).map_err(ActivateError::Backend)?;
        }
        let segmented = offloads & (TUN_F_TSO4 | TUN_F_TSO6) != 0;
        let longest = if segmented { MAX_FRAME } else { usize::from(self.mtu.max(1500)) + LINK_LEN };
        let poller = Poller::new().map_err(ActivateError::Event)?;
        let serve = NetWorker::new(Arc::clone(&self.tap), longest, activation, &poller)?;
        self.worker = Some(Worker::spawn(ThreadKind::Net, "net", poller, serve)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }

    fn pause(&mut self) {
        if let Some(worker) = &self.worker {
            worker.pause();
        }
    }

    fn resume(&mut self) {
        if let Some(worker) = &self.worker {
            worker.resume();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_follow_the_negotiated_features() {
        let (csum, tso4) = (1u64 << VIRTIO_NET_F_GUEST_CSUM, 1u64 << VIRTIO_NET_F_GUEST_TSO4);
        assert_eq!(offload_flags(0), 0);
        assert_eq!(offload_flags(tso4), 0);
        assert_eq!(offload_flags(csum), TUN_F_CSUM);
        assert_eq!(offload_flags(csum | tso4), TUN_F_CSUM | TUN_F_TSO4);
    }

    #[test]
    fn mac_and_mtu_stand_in_the_configuration() {
        let (tap, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let net = Net::on(tap.into(), [2, 0, 0, 0, 0, 9], 1400, false);
        let mut config = [0; CONFIG_LEN];
        net.read_config(0, &mut config);
        assert_eq!(config, [2, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0x78, 5]);
        assert_eq!(net.features() & GUEST_OFFLOADS, 0);
    }

    #[test]
    fn what_is_no_tap_is_refused() {
        let (tap, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert!(matches!(Net::new(tap.into(), [2, 0, 0, 0, 0, 9], 1500), Err(NetError::Tap(_))));
    }
}
