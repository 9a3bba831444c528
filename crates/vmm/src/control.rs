//! The control socket: requests of the owner in, replies and the one event out.
//!
//! The loop runs on the process's first thread. It ends in one of three ways, all of which end the process: the guest is over, the
//! owner asked for the end, or the owner is gone (end of file), in which case nobody is told.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use nacre_protocol::control::{
    Envelope, Event, ExitReason, Failure, FailureKind, FromVmm, Reply, Request, StartTimings,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::config::{self, Fds};
use crate::machine::Machine;

pub mod failure;
mod socket;

pub use socket::{ControlError, Socket};

/// How the process ends (its exit status stands in `docs/devices/transport.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest restarted, the owner asked for the end or is gone.
    Normal,
    /// The start failed; the owner was told why.
    NotStarted,
    /// A vCPU or a part of the VMM failed; the owner was told why.
    Failed,
    /// The control socket is missing or broken.
    NoControl,
}

impl End {
    /// The process's exit status.
    pub fn status(self) -> i32 {
        match self {
            Self::Normal => 0,
            Self::NotStarted => 1,
            Self::NoControl => 2,
            Self::Failed => 3,
        }
    }
}

/// The start message.
pub struct Start {
    /// Its number.
    pub id: u64,
    /// The machine that the owner wants, unchecked.
    pub config: Box<nacre_protocol::vm::VmConfig>,
    /// The descriptors that came with it.
    pub fds: Fds,
}

/// Waits for the start message; other requests before it are refused. None: the owner is gone.
///
/// # Errors
/// [`ControlError`]: the socket broke.
pub fn wait_for_start(socket: &Socket) -> Result<Option<Start>, ControlError> {
    while let Some((envelope, fds)) = receive(socket)? {
        match envelope.request {
            Request::Start(config) => return Ok(Some(Start { id: envelope.id, config, fds: Fds::new(fds) })),
            _ => socket.send(&reply(envelope.id, Err(state("the machine is not started"))))?,
        }
    }
    Ok(None)
}

/// Tells the owner how the start went.
///
/// # Errors
/// [`ControlError`]: the socket broke.
pub fn answer_start(
    socket: &Socket,
    id: u64,
    result: Result<StartTimings, Failure>,
) -> Result<(), ControlError> {
    socket.send(&reply(id, result.map(Reply::Started)))
}

/// Serves the owner until the machine is over.
pub fn serve(socket: &Socket, machine: Machine, exits: &Receiver<ExitReason>, wake: &Arc<EventFd>) -> End {
    let mut server = Server { socket, machine };
    loop {
        match wait(socket, wake) {
            Ok(Ready { exit: true, .. }) => {
                if let Ok(reason) = exits.try_recv() {
                    return server.finish(reason);
                }
            }
            Ok(Ready { request: true, .. }) => match server.request() {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(_) => return End::NoControl,
            },
            Ok(Ready { .. }) => {}
            Err(_) => return End::NoControl,
        }
    }
}

struct Ready {
    request: bool,
    exit: bool,
}

fn wait(socket: &Socket, wake: &EventFd) -> Result<Ready, Errno> {
    let wake = crate::sys::borrow_event(wake);
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(wake, PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {
            Ok(Ready { request: fds[0].any().unwrap_or(true), exit: fds[1].any().unwrap_or(true) })
        }
        Err(error) => Err(error),
    }
}

struct Server<'a> {
    socket: &'a Socket,
    machine: Machine,
}

impl Server<'_> {
    /// Serves one request. Some: the process ends.
    fn request(&mut self) -> Result<Option<End>, ControlError> {
        let Some((envelope, fds)) = receive(self.socket)? else { return Ok(Some(End::Normal)) };
        let Envelope { id, request } = envelope;
        let stop = request == Request::Stop;
        let result = self.carry_out(request, fds);
        self.socket.send(&reply(id, result))?;
        Ok(stop.then(|| self.finish(ExitReason::Stopped)))
    }

    fn carry_out(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Reply, Failure> {
        let mut fds = Fds::new(fds);
        match request {
            Request::Start(_) => return Err(state("the machine is started already")),
            Request::Pause => self.machine.pause(),
            Request::Resume => self.machine.resume(),
            Request::PlugDisk(disk) => {
                let disk = config::disk(disk, &mut fds)?;
                return Ok(Reply::Plugged { slot: self.machine.plug_disk(disk)? });
            }
            Request::PlugNet(net) => {
                let net = config::net(net, &mut fds)?;
                return Ok(Reply::Plugged { slot: self.machine.plug_net(net)? });
            }
            Request::Unplug { slot } => self.machine.unplug(slot)?,
            Request::ResizeBalloon { target_mib } => self.machine.resize_balloon(target_mib)?,
            Request::Stats => return Ok(Reply::Stats(self.machine.stats()?)),
            Request::Stop => self.machine.stop(),
        }
        Ok(Reply::Done)
    }

    /// Tells the owner why the machine is over, if it still listens.
    fn finish(&mut self, reason: ExitReason) -> End {
        let end = match reason {
            ExitReason::GuestReset | ExitReason::Stopped => End::Normal,
            ExitReason::VcpuFailed { .. } | ExitReason::Internal { .. } => End::Failed,
        };
        self.machine.stop();
        match self.socket.send(&FromVmm::Event(Event::Exited(reason))) {
            Ok(()) => end,
            Err(_) => End::NoControl,
        }
    }
}

/// The next request; a message that is none is answered and skipped. None: end of file.
fn receive(socket: &Socket) -> Result<Option<(Envelope, Vec<OwnedFd>)>, ControlError> {
    while let Some((bytes, fds)) = socket.receive()? {
        match serde_json::from_slice(&bytes) {
            Ok(envelope) => return Ok(Some((envelope, fds))),
            // Without a number there is nothing to reply to: 0 is what no owner counts from.
            Err(error) => {
                let failure =
                    Failure { kind: FailureKind::Invalid, message: format!("request is malformed: {error}") };
                socket.send(&reply(0, Err(failure)))?;
            }
        }
    }
    Ok(None)
}

fn reply(id: u64, result: Result<Reply, Failure>) -> FromVmm {
    FromVmm::Reply { id, result }
}

fn state(message: &str) -> Failure {
    Failure { kind: FailureKind::State, message: message.to_owned() }
}

#[cfg(test)]
mod tests;
