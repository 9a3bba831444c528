//! The one place where errors become ttrpc status codes.

use std::error::Error;

use nacre_protocol::id::IdError;
use ttrpc::Code;

use crate::container::{CgroupError, CreateError, ExecError, InvalidSpec, VolumeError};
use crate::machine::network::{ConfigError, NetworkError};
use crate::machine::{IdentityError, ShareError, SlotError};
use crate::process::{DeleteError, MakeError, ProcessError};
use crate::stream::StdioError;

/// Longest message of a status, in bytes.
const MAX_MESSAGE: usize = 2048;

/// Anything that a method can fail with.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Make(#[from] MakeError),
    #[error(transparent)]
    Delete(#[from] DeleteError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Stdio(#[from] StdioError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    IdMaps(#[from] InvalidSpec),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error("cannot enter the sandbox's namespaces")]
    Namespaces(#[source] std::io::Error),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error("cannot make a socket")]
    Socket(#[source] std::io::Error),
    #[error("{0}")]
    Invalid(&'static str),
    #[error("the call was cut short")]
    CutShort,
}

impl ServiceError {
    fn code(&self) -> Code {
        match self {
            Self::Process(error) => process_code(error),
            Self::Make(error) => make_code(error),
            Self::Delete(DeleteError::Process(error)) => process_code(error),
            Self::Exec(error) => exec_code(error),
            Self::Cgroup(error) if error.is_invalid() => Code::INVALID_ARGUMENT,
            Self::Stdio(error) => stdio_code(error),
            Self::Identity(error) if error.is_invalid() => Code::INVALID_ARGUMENT,
            Self::Share(ShareError::Tag(_)) | Self::Slot(SlotError::Number(_)) => Code::INVALID_ARGUMENT,
            Self::Slot(SlotError::NoDevice { .. }) => Code::FAILED_PRECONDITION,
            Self::Network(NetworkError::NoLink(_) | NetworkError::NoName(_)) => Code::NOT_FOUND,
            Self::Config(_) | Self::Id(_) | Self::Invalid(_) | Self::IdMaps(_) => Code::INVALID_ARGUMENT,
            Self::Create(error) if error.is_invalid() => Code::INVALID_ARGUMENT,
            Self::Create(_) | Self::Namespaces(_) => Code::INTERNAL,
            Self::Delete(_) | Self::Cgroup(_) | Self::Identity(_) | Self::Share(_) | Self::Slot(_) => {
                Code::INTERNAL
            }
            Self::Volume(VolumeError::Entries(_)) => Code::INVALID_ARGUMENT,
            Self::Volume(VolumeError::Missing(_)) => Code::NOT_FOUND,
            Self::Volume(VolumeError::Exists(_)) => Code::ALREADY_EXISTS,
            Self::Socket(_) => Code::INTERNAL,
            Self::Network(_) | Self::Volume(VolumeError::Path { .. }) | Self::CutShort => Code::INTERNAL,
        }
    }

    /// The error with all its causes in one line.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        let end = (0..=MAX_MESSAGE.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text
    }
}

impl From<ServiceError> for ttrpc::Error {
    fn from(error: ServiceError) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), error.chain()))
    }
}

fn process_code(error: &ProcessError) -> Code {
    match error {
        ProcessError::NoContainer(_) | ProcessError::NoExec { .. } | ProcessError::Finished => {
            Code::NOT_FOUND
        }
        ProcessError::ContainerExists(_) | ProcessError::ExecExists { .. } => Code::ALREADY_EXISTS,
        ProcessError::Busy(_) | ProcessError::AlreadyStarted => Code::FAILED_PRECONDITION,
        ProcessError::StillRunning | ProcessError::NoTerminal => Code::FAILED_PRECONDITION,
        ProcessError::BadSignal(_) => Code::INVALID_ARGUMENT,
    }
}

fn make_code(error: &MakeError) -> Code {
    match error {
        MakeError::Process(error) => process_code(error),
        MakeError::Stdio(error) => stdio_code(error),
        MakeError::Claim(_) => Code::DEADLINE_EXCEEDED,
        MakeError::Create(CreateError::Exec(error)) => exec_code(error),
        MakeError::Create(error) if error.is_invalid() => Code::INVALID_ARGUMENT,
        MakeError::Create(_) | MakeError::Cgroup(_) | MakeError::Watch(_) | MakeError::CutShort => {
            Code::INTERNAL
        }
    }
}

/// By the status that the process ends with: 127 where the program is not there, 126 where it cannot be executed.
fn exec_code(error: &ExecError) -> Code {
    match error.exit_status() {
        127 => Code::NOT_FOUND,
        _ => Code::PERMISSION_DENIED,
    }
}

fn stdio_code(error: &StdioError) -> Code {
    match error {
        StdioError::Pipe(_) => Code::INTERNAL,
        _ => Code::INVALID_ARGUMENT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_stand_behind_the_error_in_one_line() {
        let source = std::io::Error::other("no such thing");
        let error = ServiceError::Slot(SlotError::Driver { slot: 3, source });
        assert_eq!(error.chain(), "the driver failed on slot 3: no such thing");
    }

    #[test]
    fn a05_long_message_is_cut_between_characters() {
        let error = ServiceError::Share(ShareError::Tag("ä".repeat(5000)));
        assert!(error.chain().len() <= MAX_MESSAGE);
    }

    #[test]
    fn unknown_container_is_not_found() {
        let error = ServiceError::from(ProcessError::NoContainer("web".parse().unwrap()));
        assert_eq!(error.code(), Code::NOT_FOUND);
    }
}
