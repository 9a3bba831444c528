//! Letting a child go on to its program.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::channel::{self, ChannelError};
use super::orders::{Command, Failure, FailureKind, Report};

/// How long a child may take from the word to its exec: it only installs the filter.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A program that cannot be run, said as runc says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ExecError {
    /// There is no such file.
    #[error("exec: {program:?}: {reason}")]
    NotFound {
        /// The first argument.
        program: String,
        /// Where it was looked for.
        reason: String,
    },
    /// There is one, and it may not be executed.
    #[error("exec: {program:?}: {reason}")]
    NotExecutable {
        /// The first argument.
        program: String,
        /// Why not.
        reason: String,
    },
    /// The kernel refused it, or the child was lost on its way there.
    #[error("exec {program}: {reason}")]
    Failed {
        /// The file.
        program: String,
        /// Why.
        reason: String,
    },
}

impl ExecError {
    /// The status that a shell and Docker give: 127 where there is no such program, else 126.
    pub fn exit_status(&self) -> u32 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } | Self::Failed { .. } => 126,
        }
    }
}

/// Holds a child before its exec. Dropping it makes the child exit.
#[derive(Debug)]
pub struct Starter {
    channel: OwnedFd,
    program: String,
}

impl Starter {
    pub(super) fn new(channel: OwnedFd, program: String) -> Self {
        Self { channel, program }
    }

    /// Tells the child to exec, and waits until it has, or could not.
    ///
    /// # Errors
    /// [`ExecError`]; the child then exits with its [`ExecError::exit_status`].
    pub fn start(self) -> Result<(), ExecError> {
        let failed = |reason: String| ExecError::Failed { program: self.program.clone(), reason };
        match channel::send(&self.channel, &Command::Start, &[]) {
            Ok(()) => {}
            Err(ChannelError::Closed) => return Err(failed("its process ended before the start".into())),
            Err(error) => return Err(failed(error.to_string())),
        }
        match channel::receive::<Report>(&self.channel, Some(START_TIMEOUT)) {
            // The child's end is close-on-exec: it is gone because the program runs.
            Err(ChannelError::Closed) => Ok(()),
            Ok((Report::Failed(Failure { kind: FailureKind::Exec(error), .. }), _)) => Err(error),
            Ok((Report::Failed(failure), _)) => Err(failed(format!("{}: {}", failure.step, failure.message))),
            Ok((report, _)) => Err(failed(format!("unexpected report {report:?}"))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}
