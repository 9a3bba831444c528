//! `nacre stop`: the stop signal, some time, then SIGKILL.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::kill::parse_signal;
use crate::args::StopArgs;
use crate::record::Records;
use crate::shim::{Shim, ShimError};

/// SIGKILL.
const KILL: u32 = 9;

pub(super) fn run(root: &Path, name: &str, args: &StopArgs) -> Result<String> {
    let records = Records::open(root)?;
    let record = records.find(name)?;
    let signal = match args.signal.as_deref().unwrap_or(&record.stop_signal) {
        "" => parse_signal("TERM")?,
        text => parse_signal(text)?,
    };
    if records.exit(&record.id).is_none() {
        super::block_on(async {
            let shim = Shim::connect(&records.bundle(&record.id), &record.id).await?;
            Ok(stop(&shim, signal, Duration::from_secs(args.seconds)).await?)
        })?;
    }
    Ok(name.to_owned())
}

/// Returns when the container has ended.
async fn stop(shim: &Shim, signal: u32, patience: Duration) -> Result<(), ShimError> {
    ended_or(shim.kill("", signal, false).await)?;
    if let Ok(waited) = tokio::time::timeout(patience, shim.wait("")).await {
        return ended_or(waited.map(drop));
    }
    ended_or(shim.kill("", KILL, true).await)?;
    ended_or(shim.wait("").await.map(drop))
}

/// A shim that is gone has nothing left to stop.
fn ended_or(result: Result<(), ShimError>) -> Result<(), ShimError> {
    match result {
        Err(error) if error.is_gone() => Ok(()),
        other => other,
    }
}
