//! `nacre rm`: takes a container down, and everything that it left.

use std::path::Path;

use anyhow::{Result, bail};

use super::ps::{Condition, condition};
use crate::record::{Record, Records};
use crate::shim::{self, Shim};
use crate::store;

/// SIGKILL.
const KILL: u32 = 9;

pub(super) fn run(root: &Path, name: &str, force: bool) -> Result<String> {
    let records = Records::open(root)?;
    let record = records.find(name)?;
    let running = matches!(condition(&records, &record), Condition::Running | Condition::Paused);
    if running && !force {
        bail!("container {} is running: stop it first (nacre stop {name}), or use rm -f", record.name);
    }
    remove(&records, &record, running)?;
    store::open(root)?.release(&record.id)?;
    Ok(name.to_owned())
}

/// Ends the shim if there is one, then removes the directory.
pub(super) fn remove(records: &Records, record: &Record, running: bool) -> Result<()> {
    let bundle = records.bundle(&record.id);
    let ended = super::block_on(async {
        let shim = Shim::connect(&bundle, &record.id).await?;
        if running {
            shim.kill("", KILL, true).await?;
            shim.wait("").await?;
        }
        shim.delete("").await?;
        shim.shutdown(true).await;
        Ok(())
    });
    // A shim that is gone, or went while it was asked, may have left things: its own `delete` takes them away.
    if ended.is_err() && bundle.join("address").exists() {
        shim::clean_up(&bundle, &record.id)?;
    }
    records.remove(&record.id)?;
    Ok(())
}
