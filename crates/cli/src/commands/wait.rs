//! `nacre wait`: the exit status of a container, when it has ended.

use std::path::Path;

use anyhow::{Result, bail};

use crate::record::Records;
use crate::shim::{Shim, ShimError};

pub(super) fn run(root: &Path, name: &str) -> Result<String> {
    let records = Records::open(root)?;
    let record = records.find(name)?;
    if let Some(exit) = records.exit(&record.id) {
        return Ok(exit.exit_status.to_string());
    }
    let waited: Result<u32, ShimError> = super::block_on(async {
        let shim = match Shim::connect(&records.bundle(&record.id), &record.id).await {
            Ok(shim) => shim,
            Err(error) => return Ok(Err(error)),
        };
        Ok(shim.wait("").await)
    })?;
    match (waited, records.exit(&record.id)) {
        (Ok(status), _) => Ok(status.to_string()),
        (Err(_), Some(exit)) => Ok(exit.exit_status.to_string()),
        (Err(error), None) => bail!(error),
    }
}
