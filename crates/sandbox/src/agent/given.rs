//! Volumes and sockets that a guest is given in place of the host's.

use nacre_protocol::rpc::agent::{
    AddSocketRequest, SetVolumeRequest, SocketRequest, VolumeEntry, VolumeRequest,
};
use ttrpc::context::Context;

use super::{Agent, AgentError, within};

impl Agent {
    /// Makes a volume hold these entries; `create` where there is none of this name.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn set_volume(
        &self,
        name: &str,
        create: bool,
        entries: Vec<VolumeEntry>,
    ) -> Result<(), AgentError> {
        let request = SetVolumeRequest { name: name.to_owned(), create, entries, ..Default::default() };
        within(self.timeout, "SetVolume", self.client.set_volume(Context::default(), &request)).await?;
        Ok(())
    }

    /// Makes a socket that stands in for one of the host's.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn add_socket(&self, request: &AddSocketRequest) -> Result<(), AgentError> {
        within(self.timeout, "AddSocket", self.client.add_socket(Context::default(), request)).await?;
        Ok(())
    }

    /// Closes a socket.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn remove_socket(&self, name: &str) -> Result<(), AgentError> {
        let request = SocketRequest { name: name.to_owned(), ..Default::default() };
        within(self.timeout, "RemoveSocket", self.client.remove_socket(Context::default(), &request)).await?;
        Ok(())
    }

    /// Forgets a volume.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn remove_volume(&self, name: &str) -> Result<(), AgentError> {
        let request = VolumeRequest { name: name.to_owned(), ..Default::default() };
        within(self.timeout, "RemoveVolume", self.client.remove_volume(Context::default(), &request)).await?;
        Ok(())
    }
}
