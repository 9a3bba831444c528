//! The image store as the commands use it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nacre_image::registry::RegistryOptions;
use nacre_image::{Image, PullOptions, Source, Store};

use crate::args::run::PullPolicy;
use crate::progress::{Display, Tell};
use crate::record::Records;
use crate::spec::ImageDefaults;

/// An image in the store and what its containers start with.
pub(crate) struct LocalImage {
    /// Digest of the image's configuration.
    pub(crate) id: String,
    /// EROFS blobs, bottom first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) defaults: ImageDefaults,
    pub(crate) stop_signal: String,
    image: Image,
}

impl From<Image> for LocalImage {
    fn from(image: Image) -> Self {
        let config = &image.config.config;
        Self {
            id: image.id.to_string(),
            layers: image.layers.iter().map(|layer| layer.path.clone()).collect(),
            defaults: ImageDefaults {
                env: config.env.clone(),
                entrypoint: config.entrypoint.clone(),
                cmd: config.cmd.clone(),
                user: config.user.clone(),
                working_dir: config.working_dir.clone(),
                volumes: config.volume_paths(),
            },
            stop_signal: config.stop_signal.clone(),
            image,
        }
    }
}

/// Opens the store.
pub(crate) fn open(root: &Path) -> Result<Store> {
    Store::open(root).with_context(|| format!("cannot use the image store {}", root.display()))
}

/// The image that `run` asks for, pulled where the policy says so.
pub(crate) fn find_or_pull(
    store: &Store,
    text: &str,
    policy: PullPolicy,
    insecure: bool,
) -> Result<LocalImage> {
    // A directory or archive may have changed since: it is looked at each time, and moves nothing that is here.
    let source: Result<Source, _> = text.parse();
    let local = matches!(source, Ok(Source::Local { .. }));
    if policy != PullPolicy::Always
        && !local
        && let Some(image) = store.find(text)?
    {
        return Ok(image.into());
    }
    let source = source?;
    if policy == PullPolicy::Never {
        bail!("no such image: {text}: it is not in the store, and --pull never forbids to ask a registry");
    }
    // Only the process's own output belongs on stdout.
    Ok(pull(store, &source, options(insecure), Tell::News)?.into())
}

/// Pulls or imports with progress on stderr.
pub(crate) fn pull(store: &Store, source: &Source, options: PullOptions, tell: Tell) -> Result<Image> {
    let display = Display::new(tell);
    let progress = |event: nacre_image::Event<'_>| display.event(event);
    let image = match source {
        Source::Registry(reference) => {
            nacre_image::pull(store, reference, &options, &progress).map_err(anyhow::Error::new)
        }
        Source::Local { kind, path, select } => {
            nacre_image::import(store, *kind, path, select.as_deref(), &options, &progress)
                .map_err(anyhow::Error::new)
        }
    };
    display.finish();
    image.with_context(|| format!("cannot pull {source}"))
}

/// Options of a pull.
pub(crate) fn options(insecure: bool) -> PullOptions {
    PullOptions {
        registry: RegistryOptions { insecure, ..RegistryOptions::default() },
        ..PullOptions::default()
    }
}

/// Holds the image for a container, so that its layers stay.
pub(crate) fn lease(store: &Store, container: &str, image: &LocalImage) -> Result<()> {
    Ok(store.lease(container, &image.image)?)
}

/// Ends the leases of containers that are gone: a shim that removed its bundle knows of no store.
pub(crate) fn sweep_leases(store: &Store, records: &Records) -> Result<()> {
    for lease in store.leases()? {
        if !records.bundle(&lease.container).exists() {
            store.release(&lease.container)?;
        }
    }
    Ok(())
}
