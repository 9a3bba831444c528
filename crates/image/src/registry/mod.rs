//! The registry client: OCI distribution spec 1.1, pull side, over HTTP/1.1.
//!
//! ```text
//! client.rs     one repository: manifests, small blobs; redirects, retries, 401
//! blob.rs       a layer as a stream that survives broken connections (Range)
//! login.rs      answering a 401
//! auth.rs       challenges, and who may see credentials
//! credentials.rs  docker and podman configuration files and helpers
//! transport.rs  TLS roots, plain http only where it is allowed, timeouts
//! ```
//!
//! Everything that a registry sends is hostile: bodies are read up to the size that a verified document gave,
//! times and repetitions are bounded by [`NetworkPolicy`], and credentials leave this machine only as `auth.rs`
//! allows. oci-client was not used: it follows redirects and realms to any host and does not resume.

pub(crate) mod auth;
mod blob;
mod client;
mod credentials;
mod error;
mod login;
mod transport;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use blob::BlobRequest;
pub(crate) use client::Client;
pub use credentials::CredentialsError;
pub use error::RegistryError;

/// How to reach a registry.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Plain http is allowed though the registry is not on this machine. Credentials are not sent then.
    pub insecure: bool,
    /// Folders `HOST[:PORT]` with `*.crt` files: further roots for that registry, as Docker has them.
    pub certs_dir: PathBuf,
    /// The docker configuration file; none: where docker and podman keep theirs.
    pub auth_file: Option<PathBuf>,
    /// Token servers on other hosts that may be given credentials, `HOST` each.
    pub auth_realms: Vec<String>,
    /// Patience.
    pub network: NetworkPolicy,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        let realms = std::env::var("NACRE_AUTH_REALMS").unwrap_or_default();
        Self {
            insecure: false,
            certs_dir: "/etc/nacre/certs.d".into(),
            auth_file: None,
            auth_realms: realms.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            network: NetworkPolicy::default(),
        }
    }
}

/// Bounds on time and repetition.
#[derive(Debug, Clone)]
pub struct NetworkPolicy {
    /// For a connection, TLS included.
    pub connect_timeout: Duration,
    /// For the head of a response, and for silence within a body.
    pub idle_timeout: Duration,
    /// For a whole manifest, configuration or token.
    pub document_timeout: Duration,
    /// Tries of one request, the first included; a blob that moved on begins to count anew.
    pub attempts: u32,
    /// Wait before the second try; doubled each time.
    pub backoff: Duration,
    /// Longest wait that a registry may ask for (429, Retry-After) before the pull fails instead.
    pub max_wait: Duration,
}

impl Default for NetworkPolicy {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            document_timeout: Duration::from_secs(60),
            attempts: 5,
            backoff: Duration::from_millis(500),
            max_wait: Duration::from_secs(60),
        }
    }
}

impl NetworkPolicy {
    /// Wait after the given number of failures, 1 the first.
    fn wait(&self, failures: u32) -> Duration {
        let factor = 1u32 << failures.saturating_sub(1).min(6);
        self.backoff.saturating_mul(factor).min(self.max_wait)
    }
}
