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
    let names = names(&store, &source, &image)?;
    let Some((first, others)) = names.split_first() else {
        println!("{source}");
        return Ok(());
    };
    println!("{first}");
    // An archive may give several, and takes them from whatever had them.
    for other in others {
        eprintln!("also called {other}");
    }
    Ok(())
}

/// What the image is called from now on, where that is not its source: an import has the names that the archive gives.
fn names(store: &Store, source: &Source, image: &Image) -> Result<Vec<String>> {
    Ok(match source {
        Source::Registry(_) => Vec::new(),
        Source::Local { .. } => store.names(&image.id)?.iter().map(Reference::familiar).collect(),
    })
}
