//! `nacre system prune`: takes away what has ended and what nothing uses.

use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::{Context, Result};
use nacre_image::PruneOptions;

use super::ps::{Condition, condition};
use super::{rm, rmi};
use crate::args::PruneArgs;
use crate::output::size;
use crate::record::Records;
use crate::store;

pub(super) fn run(root: &Path, args: &PruneArgs) -> Result<()> {
    if !args.force && !confirmed(args.all)? {
        return Ok(());
    }
    let records = Records::open(root)?;
    for record in records.list()? {
        if matches!(condition(&records, &record), Condition::Exited { .. } | Condition::Dead) {
            rm::remove(&records, &record, false)?;
            println!("Deleted container: {}", record.id);
        }
    }
    let store = store::open(root)?;
    store::sweep_leases(&store, &records)?;
    let pruned = store.prune(PruneOptions { all: args.all })?;
    for line in rmi::lines(&pruned.removed) {
        println!("{line}");
    }
    println!("Total reclaimed space: {}", size(pruned.freed_bytes));
    Ok(())
}

fn confirmed(all: bool) -> Result<bool> {
    let images = if all { "images that no container uses" } else { "images without a name" };
    print!("This removes all stopped containers, {images}, and layers of no image. Go on? [y/N] ");
    std::io::stdout().flush().context("cannot write")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
