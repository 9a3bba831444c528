//! Links that come to the sandbox's network namespace, and go, while the VM runs.

use tokio::sync::mpsc;
use tracing::warn;

use super::{Core, Request};
use crate::error::SandboxError;
use crate::machine::Machine;

/// Tells the task of every change in the namespace, as long as there is one.
pub(super) fn watch_network(machine: &mut Machine, sender: mpsc::WeakSender<Request>) {
    let Some(mut events) = machine.take_network_events() else { return };
    tokio::spawn(async move {
        while events.next().await {
            let Some(sender) = sender.upgrade() else { return };
            if sender.send(Request::NetworkChanged).await.is_err() {
                return;
            }
        }
    });
}

impl Core {
    /// Gives the guest the network that the namespace has now.
    pub(super) async fn update_network(&mut self) -> Result<(), SandboxError> {
        match &mut self.machine {
            Some(machine) => machine.update_network().await,
            None => Ok(()),
        }
    }

    /// Nobody asked for it, so nobody can be told but the log.
    pub(super) async fn network_changed(&mut self) {
        if let Err(error) = self.update_network().await {
            let error = &error as &dyn std::error::Error;
            warn!(sandbox = %self.settings.id, error, "the guest's network is not what the namespace has");
        }
    }
}
