//! `delete`: takes down what a dead server left, and tells containerd how the task ended.

use std::fs;
use std::io::Write;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use containerd_shim_protos::api::DeleteResponse;
use nacre_protocol::task::{EXIT_FILE, ExitRecord};
use nacre_sandbox::record;
use protobuf::Message;

use crate::args::Args;
use crate::{convert, socket};

/// Exit status of a task that nobody saw end: 128 + SIGKILL.
const KILLED: u32 = 137;

/// Cleans up, whatever state the sandbox was in, and prints a DeleteResponse.
pub(crate) fn delete(args: &Args) -> Result<()> {
    let (namespace, id) = (args.namespace()?, args.id()?);
    let run_dir = record::run_dir()?;
    let record = record::clean_up(&run_dir, &namespace, &id)?;
    // A shim that was never asked for a container has no record.
    socket::end_owner(&socket::path(&run_dir, &namespace, &id));

    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().context("cannot find the bundle")?,
    };
    let exit = fs::read(bundle.join(EXIT_FILE)).ok();
    let exit: Option<ExitRecord> = exit.and_then(|text| serde_json::from_slice(&text).ok());
    let (status, at) = match exit {
        Some(exit) => (exit.exit_status, at(exit.exited_at_ns)),
        None => (KILLED, SystemTime::now()),
    };
    let pid = record.and_then(|record| record.children.first().map(|vmm| vmm.pid)).unwrap_or(0);
    let response = DeleteResponse {
        pid,
        exit_status: status,
        exited_at: Some(convert::timestamp(at)).into(),
        ..DeleteResponse::default()
    };
    let bytes = response.write_to_bytes().context("cannot encode")?;
    std::io::stdout().write_all(&bytes).context("cannot print")
}

fn at(nanoseconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
}
