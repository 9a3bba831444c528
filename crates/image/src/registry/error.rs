//! What can go wrong between here and a registry, each with what to do about it.

use std::error::Error as StdError;
use std::io;

use crate::digest::Digest;
use crate::registry::credentials::CredentialsError;

/// A failure of the registry or of the way to it.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection.
    #[error("cannot connect to registry {host}; check its name, that it runs, and the network")]
    Connect {
        /// Who was called.
        host: String,
        /// Why.
        #[source]
        source: Box<reqwest::Error>,
    },
    /// The TLS handshake failed.
    #[error(
        "no trusted TLS connection to {host}; for a private CA put its certificate in {certs_dir}/{host}/ca.crt or set SSL_CERT_FILE"
    )]
    Tls {
        /// Who was called.
        host: String,
        /// Where certificates belong.
        certs_dir: String,
        /// Why.
        #[source]
        source: Box<reqwest::Error>,
    },
    /// Something took too long.
    #[error("registry {host} did not {what} in time; try again later")]
    Timeout {
        /// Who was called.
        host: String,
        /// What was waited for.
        what: &'static str,
    },
    /// A connection that broke, again and again.
    #[error("connection to registry {host} broke; try again later")]
    Broken {
        /// Who was called.
        host: String,
        /// How.
        #[source]
        source: Box<reqwest::Error>,
    },
    /// 401 or 403 after everything that can be tried.
    #[error(
        "registry {host} refuses access to {repository}: it does not exist or needs credentials; run `docker login {host}`{note}"
    )]
    Denied {
        /// The registry.
        host: String,
        /// The repository.
        repository: String,
        /// Further reason, from us or from the registry.
        note: String,
    },
    /// 404.
    #[error("no such image: {what} is not in the registry{note}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry's own words.
        note: String,
    },
    /// 429.
    #[error("registry {host} limits the rate of requests{}; log in for a higher limit or try again later", retry_text(*retry_after_s))]
    RateLimited {
        /// The registry.
        host: String,
        /// Seconds to wait, if it said.
        retry_after_s: Option<u64>,
    },
    /// 5xx, or another status that has no place here.
    #[error("registry {host} answered with status {status}{note}; try again later, or ask who runs it")]
    Status {
        /// Who was called.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words.
        note: String,
    },
    /// A redirect that is not followed.
    #[error("registry redirects to {to}, which is refused: {why}")]
    Redirect {
        /// Where to (host only).
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// A token server that is not asked.
    #[error("registry {host} names token server {realm}, which is refused: {why}")]
    Realm {
        /// The registry.
        host: String,
        /// The token server.
        realm: String,
        /// Why not.
        why: &'static str,
    },
    /// A 401 that cannot be answered.
    #[error("registry {host} asks for a kind of authentication that is not supported")]
    Challenge {
        /// The registry.
        host: String,
    },
    /// A token server's answer that is no token.
    #[error("token server {realm} sent no usable token")]
    Token {
        /// The token server.
        realm: String,
    },
    /// A body that is longer than it may be.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What it was.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// A body of another length than its descriptor says.
    #[error("{digest} has {found} bytes in the registry, but its manifest says {expected}")]
    Size {
        /// The blob.
        digest: Digest,
        /// From the manifest.
        expected: u64,
        /// From the response; a lower bound where the rest was not read.
        found: u64,
    },
    /// A body with another digest.
    #[error("{expected} arrived damaged: its content has digest {found}")]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A partial response that does not begin where it was asked to.
    #[error("registry {host} answered a range request for {digest} with another range")]
    Range {
        /// Who was called.
        host: String,
        /// The blob.
        digest: Digest,
    },
    /// Stored credentials that cannot be read.
    #[error("stored credentials cannot be used")]
    Credentials(#[from] CredentialsError),
    /// Extra certificates that cannot be read.
    #[error("cannot read certificate {path}")]
    Certificate {
        /// The file or folder.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No TLS or HTTP client could be made.
    #[error("cannot set up TLS")]
    Setup(#[source] Box<dyn StdError + Send + Sync>),
    /// The reader of a stream went away; its own error says why.
    #[error("download was stopped")]
    Stopped,
}

fn retry_text(seconds: Option<u64>) -> String {
    seconds.map(|s| format!(" and asks to wait {s} s")).unwrap_or_default()
}

impl RegistryError {
    /// Whether the same request may work a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Broken { .. } => true,
            Self::Status { status, .. } => (500..600).contains(status) && *status != 501,
            _ => false,
        }
    }

    /// Sorts an error of the HTTP library.
    pub(super) fn from_http(host: &str, certs_dir: &str, error: reqwest::Error) -> Self {
        let host = host.to_owned();
        // The URL may hold a signed token of a storage host; the host is in our message.
        let source = Box::new(error.without_url());
        if has_tls_cause(source.as_ref()) {
            return Self::Tls { host, certs_dir: certs_dir.to_owned(), source };
        }
        if source.is_timeout() {
            return Self::Timeout { host, what: "connect" };
        }
        if source.is_connect() { Self::Connect { host, source } } else { Self::Broken { host, source } }
    }
}

/// Whether certificates or the TLS protocol are among the causes. I/O errors hide theirs from `source`.
fn has_tls_cause(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return true;
        }
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && has_tls_cause(inner)
        {
            return true;
        }
        next = error.source();
    }
    false
}
