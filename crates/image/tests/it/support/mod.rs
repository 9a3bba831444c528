//! A registry in a few lines: images made in memory, served over std::net, and spoilt as a test asks.
#![allow(unreachable_pub, reason = "a library of its own in all but name")]

pub mod image;
pub mod server;

use std::path::Path;
use std::time::Duration;

use nacre_image::pull::PullOptions;
use nacre_image::{Image, PullError, Store, progress, pull};

pub use image::{TestImage, TestLayer};
pub use server::{Reply, Request, Server};

/// Options with patience for a test: milliseconds.
pub fn options(dir: &Path) -> PullOptions {
    let mut options = PullOptions::default();
    options.platform.architecture = "amd64".into();
    let registry = &mut options.registry;
    registry.certs_dir = dir.join("certs.d");
    registry.auth_file = Some(dir.join("auth.json"));
    registry.auth_realms.clear();
    registry.network.idle_timeout = Duration::from_millis(400);
    registry.network.connect_timeout = Duration::from_secs(5);
    registry.network.document_timeout = Duration::from_secs(2);
    registry.network.attempts = 3;
    registry.network.backoff = Duration::from_millis(1);
    options
}

/// A store in a directory of its own, and options to go with it.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub options: PullOptions,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let options = options(dir.path());
        Self { dir, store, options }
    }

    pub fn pull(&self, name: &str) -> Result<Image, PullError> {
        pull(&self.store, &name.parse().unwrap(), &self.options, &progress::silent)
    }

    /// `docker login`, with user "user" and password "secret".
    pub fn log_in(&self, host: &str) {
        let config = format!(r#"{{"auths": {{"{host}": {{"auth": "dXNlcjpzZWNyZXQ="}}}}}}"#);
        std::fs::write(self.dir.path().join("auth.json"), config).unwrap();
    }

    /// Nothing half-stored: no image, no layer, no temporary file.
    pub fn assert_untouched(&self) {
        for dir in ["tmp", "pulls", "layers/sha256", "images", "names", "blobs/sha256"] {
            let left: Vec<_> = std::fs::read_dir(self.store.root().join(dir)).unwrap().collect();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
    }

    /// Nothing temporary.
    pub fn assert_tidy(&self) {
        for dir in ["tmp", "pulls"] {
            let left: Vec<_> = std::fs::read_dir(self.store.root().join(dir)).unwrap().collect();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
    }
}

/// The error and its causes, one line, as the command line prints them.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
