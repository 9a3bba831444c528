//! HTTP connections: which roots are trusted, where plain http is allowed, how long things may take.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use reqwest::redirect::Policy;
use reqwest::{Client as Http, Method, Response, Url, header::HeaderMap};
use rustls::pki_types::{CertificateDer, pem, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};

use super::{RegistryError, RegistryOptions};
use crate::reference::is_loopback;

/// Docker Hub's name is not its API's host.
const HUB_DOMAIN: &str = "docker.io";
const HUB_HOST: &str = "registry-1.docker.io";

/// Header lines of one response; the HTTP library also bounds their bytes (about 400 KiB).
const MAX_HEADERS: usize = 100;

const USER_AGENT: &str = concat!("nacre/", env!("CARGO_PKG_VERSION"));

/// Makes requests, one hop each: never follows a redirect, never adds credentials.
pub(super) struct Transport {
    options: RegistryOptions,
    /// `host[:port]` of the registry, whose own roots hold for it alone.
    registry: String,
    for_registry: OnceLock<Http>,
    for_others: OnceLock<Http>,
}

impl Transport {
    pub(super) fn new(domain: &str, options: &RegistryOptions) -> Self {
        Self {
            options: options.clone(),
            registry: domain.to_owned(),
            for_registry: OnceLock::new(),
            for_others: OnceLock::new(),
        }
    }

    /// `https://host/`, or `http://host/` where that is allowed and no certificate was put there for it.
    pub(super) fn base(&self) -> Result<Url, RegistryError> {
        let host = if self.registry == HUB_DOMAIN { HUB_HOST } else { &self.registry };
        let plain = (is_loopback(host) || self.options.insecure) && !self.registry_certs().is_dir();
        let text = format!("{}://{host}/", if plain { "http" } else { "https" });
        Url::parse(&text).map_err(|error| RegistryError::Setup(Box::new(error)))
    }

    pub(super) fn options(&self) -> &RegistryOptions {
        &self.options
    }

    /// Whether plain http may be spoken with the host of `url`.
    pub(super) fn allows_plain(&self, url: &Url) -> bool {
        self.options.insecure || is_loopback(url.host_str().unwrap_or(""))
    }

    /// One request; returns when the head of the response is there.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Option<String>,
    ) -> Result<Response, RegistryError> {
        let host = authority(url);
        let mut request = self.http(url)?.request(method, url.clone()).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        let policy = &self.options.network;
        // The connection has its own, shorter limit; a flood of interim responses ends here too.
        let limit = policy.idle_timeout.saturating_add(policy.connect_timeout);
        match tokio::time::timeout(limit, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.error(&host, error)),
            Err(_) => Err(RegistryError::Timeout { host, what: "answer" }),
        }
    }

    pub(super) fn error(&self, host: &str, error: reqwest::Error) -> RegistryError {
        RegistryError::from_http(host, &self.options.certs_dir.to_string_lossy(), error)
    }

    fn http(&self, url: &Url) -> Result<&Http, RegistryError> {
        let own = self.base()?.origin() == url.origin();
        let (cell, extra) =
            if own { (&self.for_registry, Some(self.registry_certs())) } else { (&self.for_others, None) };
        if let Some(http) = cell.get() {
            return Ok(http);
        }
        let made = self.build(url, extra.as_deref())?;
        Ok(cell.get_or_init(|| made))
    }

    fn build(&self, url: &Url, extra: Option<&Path>) -> Result<Http, RegistryError> {
        let mut builder = Http::builder()
            .tls_backend_preconfigured(tls_config(extra)?)
            .redirect(Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .http1_only()
            .http1_max_headers(MAX_HEADERS)
            .user_agent(USER_AGENT)
            .connect_timeout(self.options.network.connect_timeout);
        if is_loopback(url.host_str().unwrap_or("")) {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|error| RegistryError::Setup(Box::new(error)))
    }

    fn registry_certs(&self) -> PathBuf {
        self.options.certs_dir.join(&self.registry)
    }
}

/// `host` or `host:port`, for messages.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or("?");
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The system's roots (SSL_CERT_FILE and SSL_CERT_DIR replace them) and those in `extra`. A machine without any
/// root can still speak plain http, so none is no error here: the handshake will say it.
fn tls_config(extra: Option<&Path>) -> Result<ClientConfig, RegistryError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "a system certificate cannot be read");
    }
    roots.add_parsable_certificates(system.certs);
    if let Some(folder) = extra {
        add_folder(&mut roots, folder)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| RegistryError::Setup(Box::new(error)))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn add_folder(roots: &mut RootCertStore, folder: &Path) -> Result<(), RegistryError> {
    let failed = |path: &Path, source: io::Error| RegistryError::Certificate {
        path: path.to_string_lossy().into_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(folder, error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        if path.extension().is_none_or(|extension| extension != "crt") {
            continue;
        }
        let bad =
            |error: pem::Error| failed(&path, io::Error::new(io::ErrorKind::InvalidData, error.to_string()));
        for certificate in CertificateDer::pem_file_iter(&path).map_err(bad)? {
            roots
                .add(certificate.map_err(bad)?)
                .map_err(|error| failed(&path, io::Error::new(io::ErrorKind::InvalidData, error)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(domain: &str, insecure: bool) -> String {
        let certs_dir = "/nonexistent".into();
        let options = RegistryOptions { insecure, certs_dir, ..RegistryOptions::default() };
        Transport::new(domain, &options).base().unwrap().to_string()
    }

    #[test]
    fn plain_http_is_for_this_machine_or_on_request() {
        assert_eq!(base("127.0.0.1:5000", false), "http://127.0.0.1:5000/");
        assert_eq!(base("localhost:5000", false), "http://localhost:5000/");
        assert_eq!(base("[::1]:5000", false), "http://[::1]:5000/");
        assert_eq!(base("r.example:5000", false), "https://r.example:5000/");
        assert_eq!(base("localhost.example", false), "https://localhost.example/");
        assert_eq!(base("r.example:5000", true), "http://r.example:5000/");
    }

    #[test]
    fn docker_hub_has_another_host_than_name() {
        assert_eq!(base("docker.io", false), "https://registry-1.docker.io/");
    }

    #[test]
    fn certificates_for_a_registry_mean_https() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("127.0.0.1:5000")).unwrap();
        let options = RegistryOptions { certs_dir: dir.path().into(), ..RegistryOptions::default() };
        assert_eq!(Transport::new("127.0.0.1:5000", &options).base().unwrap().scheme(), "https");
    }
}
