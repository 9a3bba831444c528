//! `nacre pull`: an image from a registry, a layout or an archive into the store.

use std::path::Path;

use anyhow::{Result, bail};
use nacre_image::Source;

use crate::args::PullArgs;
use crate::store;

pub(super) fn run(root: &Path, args: &PullArgs) -> Result<()> {
    if args.platform != "linux/amd64" {
        bail!("platform {:?} is not offered: guests here are linux/amd64", args.platform);
    }
    let source: Source = args.image.parse()?;
    let image = store::pull(&store::open(root)?, &source, store::options(args.insecure), args.quiet)?;
    if !args.quiet {
        eprintln!("{}", image.manifest_digest.as_ref().unwrap_or(&image.id));
    }
    println!("{source}");
    Ok(())
}
