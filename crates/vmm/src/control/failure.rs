//! The one place where errors turn into what an owner is told.

use std::error::Error;
use std::fmt::Write;

use nacre_protocol::control::{Failure, FailureKind};

use crate::builder::BuildError;
use crate::config::ConfigError;
use crate::machine::MachineError;
use crate::virtio::slots::SlotError;

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        let kind = match &error {
            BuildError::Kvm(_)
            | BuildError::TooManyVcpus { .. }
            | BuildError::Regs(..)
            | BuildError::CpuId(_) => FailureKind::Kvm,
            BuildError::Kernel(_)
            | BuildError::CommandLine(_)
            | BuildError::BootParams(_)
            | BuildError::MpTable(_) => FailureKind::Image,
            BuildError::Memory(_) | BuildError::Event(_) | BuildError::Thread(_) | BuildError::Vcpus(_) => {
                FailureKind::Resources
            }
            BuildError::Slots(error) => slot_kind(error),
            BuildError::Device { .. } | BuildError::Serial(_) => FailureKind::Device,
            BuildError::Jail(_) | BuildError::Seccomp(_) => FailureKind::Jail,
        };
        failure(kind, &error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        failure(FailureKind::Invalid, &error)
    }
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        let kind = match &error {
            MachineError::Slot(error) => slot_kind(error),
            MachineError::Device { .. } => FailureKind::Device,
            MachineError::NoBalloon => FailureKind::State,
            MachineError::BalloonTooLarge { .. } => FailureKind::Invalid,
            MachineError::Memory(_) | MachineError::Clock(_) => FailureKind::Resources,
        };
        failure(kind, &error)
    }
}

fn slot_kind(error: &SlotError) -> FailureKind {
    match error {
        SlotError::TooMany(_) => FailureKind::Invalid,
        SlotError::NoneFree | SlotError::NotPlugged(_) => FailureKind::State,
        SlotError::Event(_) => FailureKind::Resources,
        SlotError::Wire(..) => FailureKind::Kvm,
        SlotError::Unfit => FailureKind::Device,
    }
}

fn failure(kind: FailureKind, error: &dyn Error) -> Failure {
    Failure { kind, message: chain(error) }
}

/// The error and its causes on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}
