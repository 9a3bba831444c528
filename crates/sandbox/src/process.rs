//! A child process by its pidfd: killed and reaped by whoever lets go of it last.

use std::fmt;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::sys::Spawned;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited by itself.
    Status(i32),
    /// A signal ended it.
    Signal(i32),
    /// Somebody else reaped it.
    Unknown,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

/// A child. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Child {
    spawned: Spawned,
}

impl Child {
    /// Takes charge of a started program.
    pub(crate) fn new(spawned: Spawned) -> Self {
        Self { spawned }
    }

    /// Its PID.
    pub fn pid(&self) -> u32 {
        self.spawned.pid
    }

    /// Sends SIGKILL; a child that is gone is left alone.
    pub fn kill(&self) {
        // ESRCH: it ended and was reaped. Nothing else can go wrong with a child's pidfd.
        let _ = pidfd_send_signal(&self.spawned.pidfd, Signal::KILL);
    }

    /// Waits for its end without a runtime: for a child that was killed, or whose pidfd is readable.
    pub fn reap(&self) -> End {
        loop {
            return match waitid(WaitId::PidFd(self.spawned.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => End::Status(code),
                    (None, Some(signal)) => End::Signal(signal),
                    (None, None) => End::Unknown,
                },
                Err(rustix::io::Errno::INTR) => continue,
                Ok(None) | Err(_) => End::Unknown,
            };
        }
    }

    /// Sets the host's OOM killer's preference for it.
    ///
    /// # Errors
    /// What the kernel says: lowering the value needs CAP_SYS_RESOURCE.
    pub fn set_oom_score_adj(&self, value: i32) -> io::Result<()> {
        let path = format!("/proc/{}/oom_score_adj", self.spawned.pid);
        let mut file = std::fs::File::options().write(true).open(path)?;
        let mut ended = [PollFd::new(&self.spawned.pidfd, PollFlags::IN)];
        // The number may be another's by now: then this one has ended.
        if poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0 {
            return Err(rustix::io::Errno::SRCH.into());
        }
        file.write_all(value.clamp(-1000, 1000).to_string().as_bytes())
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.spawned.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        self.reap();
    }
}
