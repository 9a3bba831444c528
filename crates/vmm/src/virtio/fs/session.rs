//! The vhost-user conversation: hands memory and rings to the server, and takes them back.

use std::io;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::QUEUE_SIZES;
use crate::virtio::device::ActiveQueue;

/// The feature that carries all of vhost-user's own.
const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// A connection to the server.
pub(super) struct Session {
    frontend: Frontend,
    /// The server knows its owner and the protocol's features: once for each connection.
    open: bool,
}

impl Session {
    /// Says nothing yet: the server may still be starting.
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { frontend: Frontend::from_stream(socket, QUEUE_SIZES.len() as u64), open: false }
    }

    /// Hands over memory and the queues, each with the event that the server signals. It serves them from then on; none of
    /// them where this fails.
    pub(super) fn start(
        &mut self,
        memory: &GuestMemoryMmap,
        features: u64,
        queues: &[(&ActiveQueue, &EventFd)],
    ) -> io::Result<()> {
        let outcome = self.hand_over(memory, features, queues);
        if outcome.is_err() && self.open {
            let _ = self.stop();
        }
        outcome
    }

    fn hand_over(
        &mut self,
        memory: &GuestMemoryMmap,
        features: u64,
        queues: &[(&ActiveQueue, &EventFd)],
    ) -> io::Result<()> {
        let offered = self.open()?;
        if features & !offered != 0 {
            return Err(io::Error::other("the file server lacks a feature that the driver took"));
        }
        self.frontend.set_features(features | PROTOCOL).map_err(io::Error::other)?;
        let regions: Vec<VhostUserMemoryRegionInfo> = memory
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)?;
        self.frontend.set_mem_table(&regions).map_err(io::Error::other)?;
        for (index, (active, call)) in queues.iter().enumerate() {
            let config = ring(memory, &active.queue)?;
            self.start_queue(index, active, &config, call).map_err(io::Error::other)?;
        }
        self.enable(true)
    }

    /// Takes the queues back: on return the server leaves guest memory alone.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        for index in 0..QUEUE_SIZES.len() {
            self.frontend.get_vring_base(index).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Lets the server serve the queues, or not for a while.
    pub(super) fn enable(&mut self, enabled: bool) -> io::Result<()> {
        for index in 0..QUEUE_SIZES.len() {
            self.frontend.set_vring_enable(index, enabled).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// The features that the server offers.
    fn open(&mut self) -> io::Result<u64> {
        if !self.open {
            self.frontend.set_owner().map_err(io::Error::other)?;
        }
        let offered = self.frontend.get_features().map_err(io::Error::other)?;
        if !self.open {
            let protocol = self.frontend.get_protocol_features().map_err(io::Error::other)?;
            let wanted = VhostUserProtocolFeatures::REPLY_ACK;
            if !protocol.contains(wanted) {
                return Err(io::Error::other("the file server does not acknowledge messages"));
            }
            self.frontend.set_protocol_features(wanted).map_err(io::Error::other)?;
            // From here on each message is answered, so a refusal is an error here and not a ring that stays silent.
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            self.open = true;
        }
        Ok(offered)
    }

    fn start_queue(
        &mut self,
        index: usize,
        active: &ActiveQueue,
        config: &VringConfigData,
        call: &EventFd,
    ) -> vhost::Result<()> {
        self.frontend.set_vring_num(index, active.queue.size())?;
        self.frontend.set_vring_addr(index, config)?;
        self.frontend.set_vring_base(index, active.queue.next_avail())?;
        self.frontend.set_vring_call(index, call)?;
        self.frontend.set_vring_kick(index, &active.kick)
    }
}

/// Where the rings are, by our own addresses: the server knows them from the memory table.
fn ring(memory: &GuestMemoryMmap, queue: &Queue) -> io::Result<VringConfigData> {
    if !queue.is_valid(memory) {
        return Err(io::Error::other("the rings do not lie in guest memory"));
    }
    let host = |addr| {
        let pointer = memory.get_host_address(GuestAddress(addr)).map_err(io::Error::other)?;
        Ok::<u64, io::Error>(pointer.expose_provenance() as u64)
    };
    Ok(VringConfigData {
        queue_max_size: queue.max_size(),
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: host(queue.desc_table())?,
        used_ring_addr: host(queue.used_ring())?,
        avail_ring_addr: host(queue.avail_ring())?,
        log_addr: None,
    })
}
