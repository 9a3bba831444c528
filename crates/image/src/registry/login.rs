//! Answering a challenge: Basic, or a token from the token server (distribution spec, token authentication).

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::RegistryError;
use super::auth::{self, Challenge, Trust};
use super::client::Client;
use super::credentials::{self, Secret};
use super::transport::authority;
use crate::reference::is_loopback;

/// Longest answer of a token server, in bytes.
const MAX_TOKEN_BYTES: u64 = 256 << 10;

impl Client {
    /// Answers the challenge of a 401 and keeps the answer for further requests.
    pub(super) async fn authenticate(&self, headers: &HeaderMap) -> Result<(), RegistryError> {
        let challenge =
            auth::challenge(headers).ok_or_else(|| RegistryError::Challenge { host: self.domain.clone() })?;
        let value = match challenge {
            Challenge::Basic => self.basic()?,
            Challenge::Bearer { realm, service } => self.token(&realm, service.as_deref()).await?,
        };
        *self.authorization.borrow_mut() = Some(value);
        Ok(())
    }

    fn secret(&self) -> Result<Option<Secret>, RegistryError> {
        Ok(credentials::find(&self.domain, self.transport.options().auth_file.as_deref())?)
    }

    fn basic(&self) -> Result<HeaderValue, RegistryError> {
        if self.base.scheme() == "http" && !is_loopback(&self.domain) {
            return Err(self.denied(" (credentials are not sent over plain http)".into()));
        }
        match self.secret()? {
            Some(Secret::Password(user, password)) => basic_header(&user, &password),
            _ => Err(self.denied(String::new())),
        }
    }

    /// Gets a token (distribution: token authentication; for identity tokens its OAuth2 form).
    async fn token(&self, realm: &str, service: Option<&str>) -> Result<HeaderValue, RegistryError> {
        let refused = |realm: String, why| RegistryError::Realm { host: self.domain.clone(), realm, why };
        let shown: String = realm.chars().filter(|c| !c.is_control()).take(80).collect();
        let mut url = Url::parse(realm).map_err(|_| refused(shown, "it is no URL"))?;
        let trust = auth::trust(&self.base, &url, &self.transport.options().auth_realms);
        let secret = match trust {
            Trust::Credentials => self.secret()?,
            Trust::Anonymous => None,
            Trust::Refused(why) => return Err(refused(authority(&url), why)),
        };
        let scope = format!("repository:{}:pull", self.repository);
        let mut headers = HeaderMap::new();
        let (method, body) = if let Some(Secret::Identity(refresh)) = &secret {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            (Method::POST, Some(refresh_form(refresh, service, &scope)))
        } else {
            url.query_pairs_mut().append_pair("scope", &scope);
            if let Some(service) = service {
                url.query_pairs_mut().append_pair("service", service);
            }
            if let Some(Secret::Password(user, password)) = &secret {
                headers.insert(AUTHORIZATION, basic_header(user, password)?);
            }
            (Method::GET, None)
        };
        let response = self.ask_token_server(method, &url, headers, body).await?;
        let realm = authority(&url);
        if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let note = match trust {
                Trust::Anonymous => {
                    format!(
                        " (stored credentials are withheld from {realm}; NACRE_AUTH_REALMS={realm} allows it)"
                    )
                }
                _ if secret.is_some() => format!(" (token server {realm} refuses the stored credentials)"),
                _ => String::new(),
            };
            return Err(self.denied(note));
        }
        if !response.status().is_success() {
            let status = response.status().as_u16();
            return Err(RegistryError::Status {
                host: realm,
                status,
                note: " when asked for a token".into(),
            });
        }
        let bytes = self.body(response, MAX_TOKEN_BYTES, "the token").await?;
        bearer_header(&bytes).ok_or(RegistryError::Token { realm })
    }

    /// One answer, no redirect; tried again while the server is out of order.
    async fn ask_token_server(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Option<String>,
    ) -> Result<Response, RegistryError> {
        let policy = &self.transport.options().network;
        let mut failures = 0;
        loop {
            let answer = self.transport.send(method.clone(), url, headers.clone(), body.clone()).await;
            let (again, host) = match &answer {
                Ok(response) => (response.status().is_server_error(), authority(url)),
                Err(error) => (error.is_transient(), authority(url)),
            };
            failures += 1;
            if !again || failures >= policy.attempts {
                return answer;
            }
            tracing::debug!(host, "asking the token server again");
            tokio::time::sleep(policy.wait(failures)).await;
        }
    }
}

fn basic_header(user: &str, password: &str) -> Result<HeaderValue, RegistryError> {
    let mut value =
        HeaderValue::try_from(format!("Basic {}", base64(format!("{user}:{password}").as_bytes())))
            .map_err(|error| RegistryError::Setup(Box::new(error)))?;
    value.set_sensitive(true);
    Ok(value)
}

fn bearer_header(answer: &[u8]) -> Option<HeaderValue> {
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
    }
    let parsed: Token = serde_json::from_slice(answer).ok()?;
    let token = parsed.token.filter(|text| !text.is_empty()).or(parsed.access_token)?;
    if token.is_empty() || !token.bytes().all(|c| c.is_ascii_graphic()) {
        return None;
    }
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn refresh_form(refresh: &str, service: Option<&str>, scope: &str) -> String {
    // The URL type has the only form encoder that is here already.
    let mut form = Url::parse("form:").map(|mut url| {
        url.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", "nacre")
            .append_pair("refresh_token", refresh)
            .append_pair("scope", scope);
        url
    });
    if let (Ok(form), Some(service)) = (&mut form, service) {
        form.query_pairs_mut().append_pair("service", service);
    }
    form.ok().and_then(|url| url.query().map(str::to_owned)).unwrap_or_default()
}

/// Standard alphabet with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let symbol = ALPHABET[(bits >> (18 - 6 * digit) & 63) as usize];
            text.push(if digit <= group.len() { char::from(symbol) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_has_the_rfcs_vectors() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ];
        for (plain, encoded) in vectors {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn tokens_that_would_break_a_header_are_refused() {
        for answer in [
            &br#"{"token": "a\r\nX: y"}"#[..],
            br#"{"token": ""}"#,
            br#"{}"#,
            b"not json",
            br#"{"token": "a b"}"#,
        ] {
            assert!(bearer_header(answer).is_none(), "{}", String::from_utf8_lossy(answer));
        }
        assert_eq!(bearer_header(br#"{"access_token": "abc"}"#).unwrap(), "Bearer abc");
    }

    #[test]
    fn refresh_form_is_encoded() {
        let form = refresh_form("a&b=c d", Some("s"), "repository:x/y:pull");
        assert_eq!(
            form,
            "grant_type=refresh_token&client_id=nacre&refresh_token=a%26b%3Dc+d&scope=repository%3Ax%2Fy%3Apull&service=s"
        );
    }
}
