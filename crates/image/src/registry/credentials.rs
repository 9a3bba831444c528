//! Stored credentials: docker's and podman's files, and docker's helper programs.

use std::env;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential_from_reader};

/// Longest configuration file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Credentials that are there but cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be opened or parsed.
    #[error("cannot read {path}; repair or remove it")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The entry is malformed.
    #[error("the entry for {server} in {path} is damaged; run `docker login {server}` again")]
    Entry {
        /// The registry.
        server: String,
        /// The file.
        path: PathBuf,
    },
    /// A helper program failed.
    #[error("credential helper of {path} failed for {server}: {message}")]
    Helper {
        /// The registry.
        server: String,
        /// The file that names the helper.
        path: PathBuf,
        /// What it said.
        message: String,
    },
}

/// What to prove one's identity with. Not `Debug`: it must not reach a log.
pub(super) enum Secret {
    /// User name and password.
    Password(String, String),
    /// OAuth2 refresh token.
    Identity(String),
}

/// Looks the registry up in each file in turn; none: pull as nobody.
pub(super) fn find(domain: &str, explicit: Option<&Path>) -> Result<Option<Secret>, CredentialsError> {
    // Docker Hub is stored under the URL of its long gone first API.
    let server = if domain == "docker.io" { "https://index.docker.io/v1/" } else { domain };
    let files = match explicit {
        Some(path) => vec![path.to_owned()],
        None => default_files(),
    };
    for path in files {
        if let Some(secret) = look_up(server, &path)? {
            return Ok(Some(secret));
        }
    }
    Ok(None)
}

fn default_files() -> Vec<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = variable("DOCKER_CONFIG").or_else(|| variable("HOME").map(|home| home.join(".docker")));
    let podman = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
    [variable("REGISTRY_AUTH_FILE"), docker.map(|dir| dir.join("config.json")), podman]
        .into_iter()
        .flatten()
        .collect()
}

fn look_up(server: &str, path: &Path) -> Result<Option<Secret>, CredentialsError> {
    let file_error = |source| CredentialsError::File { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_error(error)),
    };
    match get_credential_from_reader(file.take(MAX_FILE_BYTES), server) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Some(Secret::Password(user, password))),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Secret::Identity(token))),
        Err(error) => explain(error, server, path).map(|()| None),
    }
}

/// Tells "there are none" (Ok) from "they cannot be had".
fn explain(error: CredentialRetrievalError, server: &str, path: &Path) -> Result<(), CredentialsError> {
    use CredentialRetrievalError as E;
    let (path, server) = (path.to_owned(), server.to_owned());
    let helper = |message: &str| {
        let message = message.trim().chars().filter(|c| !c.is_control()).take(200).collect();
        Err(CredentialsError::Helper { server: server.clone(), path: path.clone(), message })
    };
    match error {
        E::NoCredentialConfigured | E::ConfigNotFound => Ok(()),
        // The fixed text of docker-credential-helpers for "I have none".
        E::HelperFailure { stdout, .. } if stdout.contains("credentials not found") => Ok(()),
        // Only stderr is shown: stdout is where a helper writes secrets.
        E::HelperFailure { stderr, .. } => helper(&stderr),
        E::HelperCommunicationError => helper("it cannot be run; is it installed?"),
        E::MalformedHelperResponse => helper("its answer is malformed"),
        E::CredentialDecodingError | E::CredentialMismatchError => {
            Err(CredentialsError::Entry { server, path })
        }
        E::ConfigReadError => Err(CredentialsError::File { path, source: io::ErrorKind::InvalidData.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_config(text: &str, domain: &str) -> Result<Option<Secret>, CredentialsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        find(domain, Some(&path))
    }

    #[test]
    fn docker_login_entry_is_found_for_its_registry_only() {
        let config = r#"{"auths": {"reg.example:5000": {"auth": "dXNlcjpwYXNz"}}}"#;
        assert!(matches!(with_config(config, "reg.example:5000"),
            Ok(Some(Secret::Password(user, password))) if user == "user" && password == "pass"));
        for other in ["reg.example", "evil.example", "reg.example:5001", "docker.io"] {
            assert!(matches!(with_config(config, other), Ok(None)), "{other}");
        }
    }

    #[test]
    fn docker_hub_is_found_under_its_old_url() {
        let config = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dXNlcjpwYXNz"}}}"#;
        assert!(matches!(with_config(config, "docker.io"), Ok(Some(Secret::Password(..)))));
    }

    #[test]
    fn missing_file_means_nobody() {
        assert!(matches!(find("a.example", Some(Path::new("/nonexistent/x"))), Ok(None)));
    }

    #[test]
    fn damaged_file_and_entry_are_errors() {
        assert!(matches!(with_config("{", "a.example"), Err(CredentialsError::File { .. })));
        let entry = r#"{"auths": {"a.example": {"auth": "!!"}}}"#;
        assert!(matches!(with_config(entry, "a.example"), Err(CredentialsError::Entry { .. })));
    }

    #[test]
    fn helper_that_is_not_installed_is_an_error() {
        let config = r#"{"credHelpers": {"a.example": "nacre-test-no-such-helper"}}"#;
        assert!(matches!(with_config(config, "a.example"), Err(CredentialsError::Helper { .. })));
    }
}
