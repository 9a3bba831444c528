//! Devices that come while the VM runs, and go: disks of the containers that join, and links of the network namespace.
//!
//! The VMM gives a free slot the device, then the agent lets the guest's driver look at it; to take it away, the other way round.

use super::Machine;
use crate::error::SandboxError;
use crate::network::{Events, Network, Tap};
use crate::tunnel;
use crate::vm::Disk;

impl Machine {
    /// Tells of changes in the network namespace; for the first who asks.
    pub fn take_network_events(&mut self) -> Option<Events> {
        self.network.as_mut().and_then(Network::take_events)
    }

    /// Gives the guest the links that the namespace has by now, and takes away those that it has not any more.
    ///
    /// # Errors
    /// See [`SandboxError`]. What was done until then stays.
    pub async fn update_network(&mut self) -> Result<(), SandboxError> {
        let Some(network) = &mut self.network else { return Ok(()) };
        let changes = network.update().await?;
        if !changes.added.is_empty() && self.tunnels.is_empty() {
            self.serve_names();
        }
        for link in changes.removed {
            // One that was there at boot keeps its slot: only its tap leads nowhere any more.
            if let Some(slot) = self.link_slots.remove(&link) {
                self.unplug(slot).await?;
            }
        }
        let mut failed = None;
        for tap in changes.added {
            match self.plug_net(&tap).await {
                Ok(slot) => drop(self.link_slots.insert(tap.link, slot)),
                Err(error) => {
                    if let Some(network) = &mut self.network {
                        network.forget(tap.link).await;
                    }
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if let Some(request) = self.network.as_ref().and_then(Network::untold) {
            let configured = self.agent.configure_network(request).await;
            self.explained(configured).await?;
        }
        if let Some(network) = &mut self.network {
            network.told();
        }
        Ok(())
    }

    /// Docker, who brings links late, may have brought a name server along.
    fn serve_names(&mut self) {
        let dialer = self.dialer();
        if let Some(Ok(namespace)) = self.network.as_ref().map(Network::namespace) {
            self.tunnels.push(tunnel::serve_names(namespace, dialer));
        }
    }

    async fn plug_net(&self, tap: &Tap) -> Result<u32, SandboxError> {
        let slot = self.vm.plug_net(tap, self.timeout).await?;
        self.bind(slot).await
    }

    /// A device that the guest does not take is taken back.
    async fn bind(&self, slot: u32) -> Result<u32, SandboxError> {
        let bound = self.agent.bind_slot(slot).await;
        if bound.is_err() {
            // The VM may be gone, and the slot with it.
            let _ = self.vm.unplug(slot, self.timeout).await;
        }
        self.explained(bound).await?;
        Ok(slot)
    }

    pub(super) async fn unplug(&self, slot: u32) -> Result<(), SandboxError> {
        let unbound = self.agent.unbind_slot(slot).await;
        self.explained(unbound).await?;
        Ok(self.vm.unplug(slot, self.timeout).await?)
    }

    /// All of them or none.
    pub(super) async fn plug_disks(&self, disks: &[Disk]) -> Result<Vec<u32>, SandboxError> {
        let mut slots = Vec::with_capacity(disks.len());
        for disk in disks {
            match self.plug_disk(disk).await {
                Ok(slot) => slots.push(slot),
                Err(error) => {
                    for slot in slots {
                        // The VM may be gone, and the slots with it.
                        let _ = self.unplug(slot).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(slots)
    }

    async fn plug_disk(&self, disk: &Disk) -> Result<u32, SandboxError> {
        let slot = self.vm.plug_disk(disk, self.timeout).await?;
        self.bind(slot).await
    }
}
