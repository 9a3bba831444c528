//! Sockets of the host among the shares of a container that joins: the guest gets sockets of its own for them.

use std::os::fd::OwnedFd;

use nacre_protocol::rpc::agent::AddSocketRequest;
use rustix::fs::{FileType, fstat};

use super::Machine;
use crate::error::SandboxError;
use crate::plan::{Plan, Share};
use crate::tunnel::{Served, serve_socket};

/// A socket of the host, open.
#[derive(Debug)]
pub(super) struct OpenSocket {
    name: String,
    file: OwnedFd,
    mode: u32,
    owner: (u32, u32),
}

/// A socket of the guest whose clients are led to the host's.
#[derive(Debug)]
pub(super) struct GivenSocket {
    name: String,
    _served: Served,
}

/// Takes sockets out of a plan's shares.
pub(super) fn take(
    plan: &Plan,
    files: Vec<OwnedFd>,
) -> rustix::io::Result<(Vec<Share>, Vec<OwnedFd>, Vec<OpenSocket>)> {
    let (mut rest, mut open, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
    for (share, file) in plan.shares.iter().zip(files) {
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
            let (mode, mut owner) = (stat.st_mode & 0o777, (stat.st_uid, stat.st_gid));
            if let Some(users) = plan.users.as_ref().filter(|_| share.id_mapped) {
                owner = (users.uid(owner.0), users.gid(owner.1));
            }
            sockets.push(OpenSocket { name: share.name.clone(), file, mode, owner });
        } else {
            rest.push(share.clone());
            open.push(file);
        }
    }
    Ok((rest, open, sockets))
}

impl Machine {
    /// Makes sockets in the guest, and leads their clients.
    pub(super) async fn give_sockets(
        &mut self,
        sockets: Vec<OpenSocket>,
        into: &mut Vec<GivenSocket>,
    ) -> Result<(), SandboxError> {
        for OpenSocket { name, file, mode, owner: (uid, gid) } in sockets {
            self.sockets = self.sockets.wrapping_add(1);
            let number = self.sockets;
            let request =
                AddSocketRequest { name: name.clone(), number, mode, uid, gid, ..Default::default() };
            let added = self.agent.add_socket(&request).await;
            self.explained(added).await?;
            into.push(GivenSocket { name, _served: serve_socket(file, number, self.dialer()) });
        }
        Ok(())
    }

    /// Closes sockets of the guest; connections that their clients have end too.
    pub(super) async fn take_sockets(&self, sockets: Vec<GivenSocket>) -> Result<(), SandboxError> {
        for socket in sockets {
            let removed = self.agent.remove_socket(&socket.name).await;
            self.explained(removed).await?;
        }
        Ok(())
    }
}
