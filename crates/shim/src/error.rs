//! Errors to statuses of the Task API, in one place. containerd turns the codes back into its own error kinds, and
//! acts on some: a process that is not found counts as gone.

use std::error::Error;

use containerd_shim_protos::ttrpc::error::get_rpc_status;
use containerd_shim_protos::ttrpc::{Code, Error as RpcError};
use nacre_protocol::control::FailureKind;
use nacre_sandbox::agent::AgentError;
use nacre_sandbox::error::SandboxError;
use nacre_sandbox::file_server::FileServerError;
use nacre_sandbox::jail::JailError;
use nacre_sandbox::record::RecordError;
use nacre_sandbox::vm::VmError;

use crate::convert::ConvertError;

/// The status of a sandbox's error, with its whole chain of causes as the text.
pub(crate) fn status(error: SandboxError) -> RpcError {
    let code = code(&error);
    tracing::debug!(error = chain(&error), ?code, "request failed");
    get_rpc_status(code, chain(&error))
}

/// The status of a request that cannot be meant.
pub(crate) fn invalid(error: ConvertError) -> RpcError {
    let code = match error {
        ConvertError::Checkpoint | ConvertError::Unsupported(_) => Code::UNIMPLEMENTED,
        _ => Code::INVALID_ARGUMENT,
    };
    get_rpc_status(code, chain(&error))
}

fn code(error: &SandboxError) -> Code {
    match error {
        // A process that is over is "not found" to those who kill.
        SandboxError::NoContainer(_) | SandboxError::NoExec(_) | SandboxError::Finished => Code::NOT_FOUND,
        SandboxError::HasContainer(_) | SandboxError::HasExec(_) => Code::ALREADY_EXISTS,
        SandboxError::Record(RecordError::Exists { .. }) => Code::ALREADY_EXISTS,
        SandboxError::Id(_) | SandboxError::Plan(_) | SandboxError::Resources(_) => Code::INVALID_ARGUMENT,
        SandboxError::ReadSpec { .. } | SandboxError::Stdio(_) => Code::INVALID_ARGUMENT,
        SandboxError::OtherPod { .. } => Code::INVALID_ARGUMENT,
        SandboxError::State(_)
        | SandboxError::NotRunning(_)
        | SandboxError::NoFileServer
        | SandboxError::TooManyShares
        | SandboxError::MemoryAboveGuest { .. } => Code::FAILED_PRECONDITION,
        SandboxError::Kvm { .. } | SandboxError::Asset(_) => Code::FAILED_PRECONDITION,
        SandboxError::Jail(JailError::AllTaken) => Code::RESOURCE_EXHAUSTED,
        SandboxError::Vm(VmError::Refused { failure, .. }) => match failure.kind {
            FailureKind::Resources => Code::RESOURCE_EXHAUSTED,
            FailureKind::Kvm | FailureKind::Image | FailureKind::State => Code::FAILED_PRECONDITION,
            FailureKind::Invalid | FailureKind::Device | FailureKind::Jail => Code::INTERNAL,
        },
        SandboxError::BootTimeout { .. }
        | SandboxError::StorageTimeout(_)
        | SandboxError::Vm(VmError::Timeout { .. })
        | SandboxError::FileServer(FileServerError::Timeout(_))
        | SandboxError::Agent(AgentError::Unresponsive { .. }) => Code::DEADLINE_EXCEEDED,
        SandboxError::Agent(AgentError::Refused { code, .. }) => from_guest(*code),
        SandboxError::Closed => Code::UNAVAILABLE,
        SandboxError::Record(_)
        | SandboxError::Jail(_)
        | SandboxError::Cgroup(_)
        | SandboxError::Storage(_)
        | SandboxError::Network(_)
        | SandboxError::Hook(_)
        | SandboxError::FileServer(_)
        | SandboxError::Socket { .. }
        | SandboxError::Vm(_)
        | SandboxError::Agent(_) => Code::UNKNOWN,
    }
}

/// Codes that an agent may choose. What it calls missing is a file in the guest, never a container of containerd's:
/// that would make containerd forget one that exists.
fn from_guest(code: Code) -> Code {
    match code {
        Code::INVALID_ARGUMENT
        | Code::FAILED_PRECONDITION
        | Code::UNIMPLEMENTED
        | Code::RESOURCE_EXHAUSTED => code,
        _ => Code::UNKNOWN,
    }
}

/// `what: why: why`.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use nacre_sandbox::state::{Move, State};

    fn refused(code: Code) -> SandboxError {
        AgentError::Refused { message: "no such file".into(), code }.into()
    }

    #[test]
    fn kinds_that_containerd_acts_on_have_their_codes() {
        assert_eq!(code(&SandboxError::NoContainer("x".into())), Code::NOT_FOUND);
        assert_eq!(code(&SandboxError::Finished), Code::NOT_FOUND);
        assert_eq!(code(&SandboxError::HasExec("x".into())), Code::ALREADY_EXISTS);
        let illegal = State::Running.after(Move::Delete).unwrap_err();
        assert_eq!(code(&illegal.into()), Code::FAILED_PRECONDITION);
    }

    #[test]
    fn h12_guest_cannot_make_containerd_forget_a_container() {
        assert_eq!(code(&refused(Code::NOT_FOUND)), Code::UNKNOWN);
        assert_eq!(code(&refused(Code::INVALID_ARGUMENT)), Code::INVALID_ARGUMENT);
    }

    #[test]
    fn text_has_every_cause_once() {
        let source = std::io::Error::from_raw_os_error(2);
        let error = SandboxError::ReadSpec { path: "/b/config.json".into(), source };
        assert_eq!(chain(&error), "cannot read /b/config.json: No such file or directory (os error 2)");
    }
}
