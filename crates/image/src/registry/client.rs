//! Requests to one repository: authentication, redirects, retries, bounded bodies.

use std::cell::RefCell;
use std::time::Duration;

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::transport::{Transport, authority};
use super::{RegistryError, RegistryOptions};
use crate::digest::Digest;
use crate::manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, Descriptor, MAX_DOCUMENT_BYTES, OCI_INDEX, OCI_MANIFEST,
};
use crate::reference::Reference;

/// Redirects of one request.
const MAX_REDIRECTS: usize = 5;

/// Longest error text, in bytes.
const MAX_ERROR_BYTES: u64 = 64 << 10;

const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");

/// A manifest or index as it came, its digest checked.
pub(crate) struct RawDocument {
    /// The Content-Type header.
    pub(crate) media_type: Option<String>,
    /// The digest of `bytes`.
    pub(crate) digest: Digest,
    /// The document.
    pub(crate) bytes: Vec<u8>,
}

/// One repository of one registry.
pub(crate) struct Client {
    pub(super) transport: Transport,
    pub(super) base: Url,
    pub(super) domain: String,
    pub(super) repository: String,
    /// What the registry accepted last; sent to `base`'s origin only.
    pub(super) authorization: RefCell<Option<HeaderValue>>,
}

/// What is asked, of the registry itself.
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// For messages.
    pub(super) what: String,
}

impl Client {
    /// Prepares requests for the repository of `reference`; sends nothing yet.
    pub(crate) fn new(reference: &Reference, options: &RegistryOptions) -> Result<Self, RegistryError> {
        let transport = Transport::new(reference.domain(), options);
        Ok(Self {
            base: transport.base()?,
            transport,
            domain: reference.domain().to_owned(),
            repository: reference.path().to_owned(),
            authorization: RefCell::new(None),
        })
    }

    /// The digest that a tag has now; none where the registry does not tell without the document.
    pub(crate) async fn head(&self, reference: &Reference) -> Result<Option<Digest>, RegistryError> {
        let response = self.send(&self.manifest_ask(Method::HEAD, &reference.selector_text())).await?;
        Ok(content_digest(&response))
    }

    /// Fetches a manifest or index by tag or digest.
    pub(crate) async fn manifest(&self, selector: &str) -> Result<RawDocument, RegistryError> {
        let response = self.send(&self.manifest_ask(Method::GET, selector)).await?;
        let media_type =
            response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let claimed = content_digest(&response);
        let bytes = self.body(response, MAX_DOCUMENT_BYTES, "the manifest").await?;
        let wanted = selector.parse::<Digest>().ok();
        for expected in [&wanted, &claimed].into_iter().flatten() {
            check_digest(expected, &bytes)?;
        }
        let digest = wanted.or(claimed).unwrap_or_else(|| Digest::sha256(&bytes));
        Ok(RawDocument { media_type, digest, bytes })
    }

    /// Fetches a small blob (an image configuration) whole.
    pub(crate) async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let response = self.send(&self.blob_ask(&descriptor.digest)).await?;
        let bytes =
            self.body(response, descriptor.size.min(MAX_DOCUMENT_BYTES), "the image configuration").await?;
        let found = bytes.len() as u64;
        if found != descriptor.size {
            return Err(RegistryError::Size {
                digest: descriptor.digest.clone(),
                expected: descriptor.size,
                found,
            });
        }
        check_digest(&descriptor.digest, &bytes)?;
        Ok(bytes)
    }

    pub(super) fn host(&self) -> &str {
        &self.domain
    }

    pub(super) fn blob_ask(&self, digest: &Digest) -> Ask {
        Ask {
            method: Method::GET,
            path: format!("v2/{}/blobs/{digest}", self.repository),
            headers: HeaderMap::new(),
            what: format!("{}/{}@{digest}", self.domain, self.repository),
        }
    }

    fn manifest_ask(&self, method: Method, selector: &str) -> Ask {
        let mut headers = HeaderMap::new();
        for media_type in [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST] {
            headers.append(ACCEPT, HeaderValue::from_static(media_type));
        }
        let separator = if selector.contains(':') { '@' } else { ':' };
        Ask {
            method,
            path: format!("v2/{}/manifests/{selector}", self.repository),
            headers,
            what: format!("{}/{}{separator}{selector}", self.domain, self.repository),
        }
    }

    /// Sends until there is a success, an error that stays, or patience ends.
    pub(super) async fn send(&self, ask: &Ask) -> Result<Response, RegistryError> {
        let policy = &self.transport.options().network;
        let mut authenticated = false;
        let mut failures = 0;
        loop {
            let error = match self.follow(ask).await {
                Ok(Answer::Final(response)) if response.status().is_success() => return Ok(response),
                Ok(Answer::Final(response)) => self.failure(ask, response).await,
                Ok(Answer::Challenge(headers)) if !authenticated => {
                    authenticated = true;
                    self.authenticate(&headers).await?;
                    continue;
                }
                Ok(Answer::Challenge(_)) => return Err(self.denied(String::new())),
                Err(error) => error,
            };
            failures += 1;
            let wait = match &error {
                RegistryError::RateLimited { retry_after_s, .. } => {
                    retry_after_s.map_or(policy.wait(failures), Duration::from_secs)
                }
                error if error.is_transient() => policy.wait(failures),
                _ => return Err(error),
            };
            if failures >= policy.attempts || wait > policy.max_wait {
                return Err(error);
            }
            tracing::debug!(%error, ?wait, "asking the registry again");
            tokio::time::sleep(wait).await;
        }
    }

    /// Follows redirects. Authorization is sent while the request has not left the registry's origin.
    async fn follow(&self, ask: &Ask) -> Result<Answer, RegistryError> {
        let mut url = self.url(&ask.path)?;
        let mut at_home = true;
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = ask.headers.clone();
            if at_home && let Some(value) = &*self.authorization.borrow() {
                headers.insert(AUTHORIZATION, value.clone());
            }
            let response = self.transport.send(ask.method.clone(), &url, headers, None).await?;
            if response.status() == StatusCode::UNAUTHORIZED && at_home {
                return Ok(Answer::Challenge(response.headers().clone()));
            }
            if !is_redirect(response.status()) {
                return Ok(Answer::Final(response));
            }
            url = self.redirect_target(&url, &response)?;
            at_home = at_home && url.origin() == self.base.origin();
        }
        Err(RegistryError::Redirect { to: authority(&url), why: "there are too many redirects" })
    }

    fn redirect_target(&self, from: &Url, response: &Response) -> Result<Url, RegistryError> {
        let text = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let target = text.and_then(|text| from.join(text).ok());
        let Some(mut target) = target else {
            return Err(RegistryError::Redirect { to: "nowhere".into(), why: "its Location is no URL" });
        };
        let refuse = |why| Err(RegistryError::Redirect { to: authority(&target), why });
        if !target.username().is_empty() || target.password().is_some() {
            return refuse("its URL carries a user name");
        }
        match (from.scheme(), target.scheme()) {
            (_, "https") => {}
            ("http", "http") if self.transport.allows_plain(&target) => {}
            ("https", "http") => return refuse("it leads from https to plain http"),
            (_, "http") => return refuse("it speaks plain http to another host"),
            _ => return refuse("it is neither https nor http"),
        }
        target.set_fragment(None);
        Ok(target)
    }

    fn url(&self, path: &str) -> Result<Url, RegistryError> {
        self.base.join(path).map_err(|error| RegistryError::Setup(Box::new(error)))
    }

    /// Turns a status that is no success into an error, with the registry's words where it gives some.
    async fn failure(&self, ask: &Ask, response: Response) -> RegistryError {
        let host = authority(response.url());
        let status = response.status();
        let retry_after_s = retry_after(response.headers());
        let body = self.body(response, MAX_ERROR_BYTES, "the error").await.unwrap_or_default();
        let note = error_text(&body);
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { what: ask.what.clone(), note },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited { host, retry_after_s },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if host == authority(&self.base) => {
                self.denied(note)
            }
            status => RegistryError::Status { host, status: status.as_u16(), note },
        }
    }

    pub(super) fn denied(&self, note: String) -> RegistryError {
        RegistryError::Denied { host: self.domain.clone(), repository: self.repository.clone(), note }
    }

    /// Reads a body of at most `limit` bytes within the time for documents.
    pub(super) async fn body(
        &self,
        mut response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, RegistryError> {
        let host = authority(response.url());
        let too_large = || RegistryError::TooLarge { what: format!("{what} from {host}"), limit };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let read = async {
            while let Some(chunk) =
                response.chunk().await.map_err(|error| self.transport.error(&host, error))?
            {
                if (bytes.len() + chunk.len()) as u64 > limit {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(())
        };
        match tokio::time::timeout(self.transport.options().network.document_timeout, read).await {
            Ok(done) => done.map(|()| bytes),
            Err(_) => Err(RegistryError::Timeout { host: host.clone(), what: "send a document" }),
        }
    }
}

enum Answer {
    Final(Response),
    /// The registry itself answered 401, with these headers.
    Challenge(HeaderMap),
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn content_digest(response: &Response) -> Option<Digest> {
    response.headers().get(DIGEST_HEADER)?.to_str().ok()?.parse().ok()
}

fn check_digest(expected: &Digest, bytes: &[u8]) -> Result<(), RegistryError> {
    if expected.matches(bytes) {
        return Ok(());
    }
    Err(RegistryError::DigestMismatch { expected: expected.clone(), found: Digest::sha256(bytes) })
}

/// Seconds form only; a date is treated as not said.
fn retry_after(headers: &HeaderMap) -> Option<u64> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}

/// The message of a registry's error document, cleaned for a terminal.
fn error_text(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        message: String,
    }
    let errors = serde_json::from_slice::<Errors>(body).map(|parsed| parsed.errors).unwrap_or_default();
    let message = errors.first().map(|entry| entry.message.as_str()).unwrap_or_default();
    let clean: String = message.chars().filter(|c| !c.is_control()).take(200).collect();
    if clean.is_empty() { clean } else { format!(" ({clean})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_texts_lose_their_control_characters() {
        assert_eq!(error_text(br#"{"errors":[{"message":"no\u001b[31m red"}]}"#), " (no[31m red)");
        assert_eq!(error_text(b"<html>"), "");
    }
}
