//! The virtual machine monitor: a process that knows KVM, memory and virtio, and nothing of containers.
//!
//! | module | owns |
//! |---|---|
//! | [`control`], [`config`] | what the owner says, checked |
//! | [`builder`] | the steps from there to a running machine |
//! | [`machine`], [`vcpu`], [`bus`] | the running machine: threads, exits, addresses |
//! | [`kvm`], [`memory`], [`arch`] | KVM objects, guest memory, the x86_64 boot protocol |
//! | [`virtio`], [`serial`] | devices and their transport |
//! | [`jail`], [`sys`] | what the process gives up before the guest runs; raw system calls |
//!
//! ```text
//!  control thread  --pause, stop--> vCPU threads --MMIO--> slots --activate, reset--> device thread
//!        ^                              |                                               | starts
//!        +--------- exit reason --------+            workers of the devices <-----------+
//! ```

use std::process;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use nacre_protocol::control::{CONTROL_FD, Failure};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub mod arch;
pub mod builder;
pub mod bus;
pub mod config;
pub mod control;
pub mod jail;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod serial;
pub mod sys;
pub mod vcpu;
pub mod virtio;

use builder::BuildError;
use control::{ControlError, End, Socket};
use machine::Machine;
use vcpu::ExitReporter;

/// The life of the process. `begin` is the first instant of `main`.
pub fn run(begin: Instant) -> End {
    sys::use_one_arena();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .without_time()
        .with_ansi(false)
        .init();
    match run_on_socket(begin) {
        Ok(end) => end,
        Err(error) => {
            tracing::error!(pid = process::id(), "{}", control::failure::chain(&error));
            End::NoControl
        }
    }
}

/// The control socket is missing or broke before the machine ran.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(
        "descriptor {CONTROL_FD} is not open: nacre-vmm is started by its owner with a control socket there"
    )]
    NoControl(#[source] std::io::Error),
    #[error("inherited descriptors could not be closed")]
    Close(#[source] std::io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("an event descriptor could not be made")]
    Event(#[source] std::io::Error),
}

fn run_on_socket(begin: Instant) -> Result<End, RunError> {
    let control = sys::take_inherited_fd(CONTROL_FD).map_err(RunError::NoControl)?;
    sys::close_from(CONTROL_FD as u32 + 1).map_err(RunError::Close)?;
    let socket = Socket::new(control)?;
    let Some(start) = control::wait_for_start(&socket)? else { return Ok(End::Normal) };

    let (reasons, exits) = mpsc::channel();
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(RunError::Event)?);
    let reporter = ExitReporter::new(reasons, Arc::clone(&wake));
    let id = start.id;
    match build(start, begin, &reporter) {
        Ok((mut machine, timings)) => {
            machine.resume();
            control::answer_start(&socket, id, Ok(timings))?;
            Ok(control::serve(&socket, machine, &exits, &wake))
        }
        Err(failure) => {
            control::answer_start(&socket, id, Err(failure))?;
            Ok(End::NotStarted)
        }
    }
}

fn build(
    start: control::Start,
    begin: Instant,
    reporter: &ExitReporter,
) -> Result<(Machine, nacre_protocol::control::StartTimings), Failure> {
    let config = config::check(*start.config, start.fds)?;
    builder::start(config, begin, reporter).map_err(|error: BuildError| error.into())
}
