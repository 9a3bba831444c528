//! Authentication: challenges of a 401, and who may be shown what (SECURITY-CASES I08).
//!
//! The rules, for a registry R and the token server T that its 401 names:
//!
//! | T | asked for a token | shown credentials |
//! |---|---|---|
//! | https, same host as R | yes | yes |
//! | https, Docker Hub's or GitLab's own, a parent or child domain of R, or listed by the user | yes | yes |
//! | https, any other host | yes, as nobody | no |
//! | http, R is http on this machine, same host | yes | yes |
//! | http, R is http on this machine, T is on this machine by another name | yes, as nobody | no |
//! | http, R is http by `--insecure`, same host | yes, as nobody | no |
//! | anything else | no | no |
//!
//! A token, or the header of Basic authentication, goes to R's own scheme, host and port and nowhere else.

use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

use crate::reference::is_loopback;

/// Longest challenge that is parsed.
const MAX_CHALLENGE_LEN: usize = 8192;

/// Registries whose token server is on a sibling host, and that host.
const KNOWN_REALMS: [(&str, &str); 2] =
    [("registry-1.docker.io", "auth.docker.io"), ("registry.gitlab.com", "gitlab.com")];

/// What a 401 asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from `realm`.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Name of the registry, in the token server's words.
        service: Option<String>,
    },
    /// User name and password.
    Basic,
}

/// How far a token server is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// It may see credentials.
    Credentials,
    /// It may be asked as nobody.
    Anonymous,
    /// It is not asked.
    Refused(&'static str),
}

/// The best challenge of a response: Bearer before Basic.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let all: Vec<Challenge> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse_challenges)
        .collect();
    let bearer = all.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    bearer.or_else(|| all.first()).cloned()
}

/// Parses one header (RFC 9110, section 11.6.1): schemes and their parameters, all separated by commas.
fn parse_challenges(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    if text.len() > MAX_CHALLENGE_LEN {
        return found;
    }
    let mut rest = text;
    while let Some((scheme, after)) = token(rest) {
        let (params, after) = parameters(after);
        rest = after;
        let value = |name: &str| {
            params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = value("realm")
        {
            found.push(Challenge::Bearer { realm, service: value("service") });
        }
    }
    found
}

type Parameters = Vec<(String, String)>;

/// `name=value` pairs up to the next scheme or the end.
fn parameters(mut rest: &str) -> (Parameters, &str) {
    let mut params = Vec::new();
    while let Some((name, after)) = token(rest) {
        let Some(after) = after.trim_start().strip_prefix('=') else { break };
        let Some((value, after)) = parameter_value(after.trim_start()) else { break };
        params.push((name.to_owned(), value));
        rest = after;
    }
    (params, rest)
}

/// The next word, separators before it skipped.
fn token(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)));
    let (word, rest) = text.split_at(end.unwrap_or(text.len()));
    (!word.is_empty()).then_some((word, rest))
}

fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return token(text).map(|(word, rest)| (word.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// Judges the token server `realm` of the registry at `registry` by the table above.
pub(crate) fn trust(registry: &Url, realm: &Url, listed: &[String]) -> Trust {
    let (Some(registry_host), Some(realm_host)) = (registry.host_str(), realm.host_str()) else {
        return Trust::Refused("it has no host");
    };
    if !realm.username().is_empty() || realm.password().is_some() {
        return Trust::Refused("its URL carries a user name");
    }
    let same = registry_host == realm_host;
    match (registry.scheme(), realm.scheme()) {
        (_, "https") => {
            let known = KNOWN_REALMS.contains(&(registry_host, realm_host))
                || listed.iter().any(|name| name.eq_ignore_ascii_case(realm_host))
                || is_parent(registry_host, realm_host)
                || is_parent(realm_host, registry_host);
            if same || known { Trust::Credentials } else { Trust::Anonymous }
        }
        ("http", "http") if is_loopback(registry_host) => match is_loopback(realm_host) {
            true if same => Trust::Credentials,
            true => Trust::Anonymous,
            false => Trust::Refused("it is on another host and speaks plain http"),
        },
        ("http", "http") if same => Trust::Anonymous,
        (_, "http") => Trust::Refused("it speaks plain http"),
        _ => Trust::Refused("it is neither https nor http"),
    }
}

/// Whether the owner of domain `parent` owns `child` too. A bare top-level name owns nothing here.
fn is_parent(parent: &str, child: &str) -> bool {
    let name = |host: &str| {
        host.contains('.') && !host.starts_with('[') && !host.ends_with(|c: char| c.is_ascii_digit())
    };
    name(parent) && child.strip_suffix(parent).is_some_and(|front| front.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn judge(registry: &str, realm: &str) -> Trust {
        let listed = ["sso.corp.example".to_owned()];
        trust(&Url::parse(registry).unwrap(), &Url::parse(realm).unwrap(), &listed)
    }

    #[test]
    fn bearer_challenge_is_parsed() {
        let parsed = parse_challenges(
            r#"Bearer realm="https://auth.example/token",service="reg \"x\"",scope="a:b:pull,push""#,
        );
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: Some("reg \"x\"".into()),
        };
        assert_eq!(parsed, [expected]);
    }

    #[test]
    fn several_challenges_in_one_header_are_parsed() {
        let parsed = parse_challenges(r#"Basic realm="x", bearer realm=t.example , Negotiate"#);
        let bearer = Challenge::Bearer { realm: "t.example".into(), service: None };
        assert_eq!(parsed, [Challenge::Basic, bearer]);
    }

    #[test]
    fn broken_challenges_are_nothing() {
        for text in
            ["", ",", "Bearer", r#"Bearer realm="unclosed"#, "Bearer realm=", "\u{1}", r#"Bearer realm="a\"#]
        {
            assert!(parse_challenges(text).is_empty(), "{text:?}");
        }
        assert!(parse_challenges(&format!("Basic {}", "x".repeat(MAX_CHALLENGE_LEN))).is_empty());
    }

    #[test]
    fn i08_credentials_go_to_the_registrys_own_token_servers() {
        for (registry, realm) in [
            ("https://r.example/", "https://r.example/token"),
            ("https://r.example:5000/", "https://r.example/token"),
            ("https://registry-1.docker.io/", "https://auth.docker.io/token"),
            ("https://registry.gitlab.com/", "https://gitlab.com/jwt/auth"),
            ("https://reg.corp.example/", "https://corp.example/token"),
            ("https://corp.example/", "https://auth.corp.example/token"),
            ("https://anything.example/", "https://sso.corp.example/token"),
            ("http://127.0.0.1:5000/", "http://127.0.0.1:5001/token"),
            ("http://127.0.0.1:5000/", "https://127.0.0.1:5001/token"),
        ] {
            assert_eq!(judge(registry, realm), Trust::Credentials, "{registry} {realm}");
        }
    }

    #[test]
    fn i08_other_hosts_are_asked_as_nobody() {
        for (registry, realm) in [
            ("https://r.example/", "https://evil.test/token"),
            ("https://victim.azurecr.io/", "https://evil.azurecr.io/token"),
            ("https://r.example/", "https://evilr.example/token"),
            ("https://example/", "https://evil.example/token"),
            ("https://10.0.0.1/", "https://1.10.0.0.1.evil.test/token"),
            ("https://auth.docker.io/", "https://registry-1.docker.io/"),
            ("http://lan.example:5000/", "http://lan.example:5000/token"),
            ("http://127.0.0.1:5000/", "http://localhost:5001/token"),
        ] {
            assert_eq!(judge(registry, realm), Trust::Anonymous, "{registry} {realm}");
        }
    }

    #[test]
    fn i08_plain_http_token_servers_are_refused() {
        for (registry, realm) in [
            ("https://r.example/", "http://r.example/token"),
            ("https://r.example/", "http://127.0.0.1/token"),
            ("http://127.0.0.1:5000/", "http://evil.test/token"),
            ("http://lan.example/", "http://other.example/token"),
            ("https://r.example/", "ftp://r.example/token"),
            ("https://r.example/", "https://user@r.example/token"),
            ("https://r.example/", "https://user:pw@r.example/token"),
        ] {
            assert!(matches!(judge(registry, realm), Trust::Refused(_)), "{registry} {realm}");
        }
    }

    proptest! {
        #[test]
        fn any_header_parses_or_not_without_panic(text in ".{0,200}") {
            parse_challenges(&text);
        }

        #[test]
        fn i08_foreign_names_never_get_credentials(realm in "[a-z]{1,8}\\.(test|evil)") {
            let verdict = judge("https://r.example/", &format!("https://{realm}/token"));
            prop_assert_eq!(verdict, Trust::Anonymous);
        }
    }
}
