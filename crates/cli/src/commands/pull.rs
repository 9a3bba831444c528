//! `nacre pull`: an image from a registry, a layout or an archive into the store.

use std::path::Path;

use anyhow::{Result, bail};
use nacre_image::{Image, Reference, Source, Store};

use crate::args::PullArgs;
use crate::progress::Tell;
use crate::store;

pub(super) fn run(root: &Path, args: &PullArgs) -> Result<()> {
    if args.platform != "linux/amd64" {
        bail!("platform {:?} is not offered: guests here are linux/amd64", args.platform);
    }
    let source: Source = args.image.parse()?;
    let store = store::open(root)?;
    let tell = if args.quiet { Tell::Nothing } else { Tell::All };
    let image = store::pull(&store, &source, store::options(args.insecure), tell)?;
    if !args.quiet {
        eprintln!("{}", image.manifest_digest.as_ref().unwrap_or(&image.id));
    }
    println!("{}", name(&store, &source, &image)?);
    Ok(())
}

/// What the image is called from now on: an import has the name that the archive gives.
fn name(store: &Store, source: &Source, image: &Image) -> Result<String> {
    let given = match source {
        Source::Registry(_) => None,
        Source::Local { .. } => store.names(&image.id)?.first().map(Reference::familiar),
    };
    Ok(given.unwrap_or_else(|| source.to_string()))
}
