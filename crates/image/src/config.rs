//! The image configuration: how a container of the image starts (OCI image spec, config.md).
//!
//! Docker and OCI write the same names. `null` stands for "empty" in many images, and old ones have a string
//! where a list belongs; both are read. Nothing here becomes host configuration (SECURITY-CASES H06): labels are
//! shown, never obeyed.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::manifest::{MAX_DOCUMENT_BYTES, MAX_LAYERS, Platform};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or fields of the wrong kind.
    #[error("image configuration cannot be read")]
    Json(#[from] serde_json::Error),
    /// Larger than any document may be.
    #[error("image configuration has {0} bytes, at most {MAX_DOCUMENT_BYTES} are allowed")]
    TooLarge(usize),
    /// For another machine.
    #[error("image is for {found}, this machine runs {wanted}")]
    Platform {
        /// What the image says.
        found: Box<Platform>,
        /// What was asked for.
        wanted: Box<Platform>,
    },
    /// rootfs is not made of layers, or of too many.
    #[error("image configuration lists {0} layers, 1 to {MAX_LAYERS} are possible")]
    LayerCount(usize),
    /// Something other than layers.
    #[error("image rootfs has type {0:?}, only \"layers\" exists")]
    RootfsType(String),
    /// A NUL byte where the kernel takes C strings.
    #[error("image configuration has a NUL byte in {0}")]
    Nul(&'static str),
}

/// The whole configuration document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Architecture (Go's name).
    #[serde(default)]
    pub architecture: String,
    /// Operating system (Go's name).
    #[serde(default)]
    pub os: String,
    /// Variant of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Time of creation, RFC 3339, as written in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// How a container starts.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: ContainerConfig,
    /// The layers.
    pub rootfs: RootFs,
    /// How the layers came about.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// Defaults for a container of the image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// `user`, `uid`, `user:group` or `uid:gid`, resolved in the guest against the image's own files.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// `NAME=value` entries.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// First part of the command.
    #[serde(deserialize_with = "words")]
    pub entrypoint: Vec<String>,
    /// Default arguments, replaced by those of the command line.
    #[serde(deserialize_with = "words")]
    pub cmd: Vec<String>,
    /// Working directory.
    #[serde(deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// Mount points, raw; use [`ContainerConfig::volume_paths`].
    #[serde(deserialize_with = "null_is_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// `port/protocol`.
    #[serde(deserialize_with = "null_is_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// Signal that asks the process to end.
    #[serde(deserialize_with = "null_is_default")]
    pub stop_signal: String,
    /// Free text.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
}

/// Uncompressed layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed tar streams.
    pub diff_ids: Vec<Digest>,
}

/// One build step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether the step made no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Parses and checks a configuration document for `wanted`.
    ///
    /// # Errors
    /// [`ConfigError`] where it is malformed or for another platform.
    pub fn parse(bytes: &[u8], wanted: &Platform) -> Result<Self, ConfigError> {
        if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
            return Err(ConfigError::TooLarge(bytes.len()));
        }
        let config: Self = serde_json::from_slice(bytes)?;
        config.check_platform(wanted)?;
        if config.rootfs.kind != "layers" {
            return Err(ConfigError::RootfsType(config.rootfs.kind.chars().take(32).collect()));
        }
        let layers = config.rootfs.diff_ids.len();
        if layers == 0 || layers > MAX_LAYERS {
            return Err(ConfigError::LayerCount(layers));
        }
        config.config.check_strings()?;
        Ok(config)
    }

    /// Images that do not say are taken to fit, as Docker does.
    fn check_platform(&self, wanted: &Platform) -> Result<(), ConfigError> {
        let differs = |found: &str, wanted: &str| !found.is_empty() && found != wanted;
        if differs(&self.os, &wanted.os) || differs(&self.architecture, &wanted.architecture) {
            let found = Platform {
                os: self.os.clone(),
                architecture: self.architecture.clone(),
                variant: self.variant.clone(),
            };
            return Err(ConfigError::Platform { found: Box::new(found), wanted: Box::new(wanted.clone()) });
        }
        Ok(())
    }
}

impl ContainerConfig {
    /// Mount points as absolute paths without `.` and `..`: "/../../etc" is "/etc", and so stays in the rootfs
    /// (CVE-2022-23648). Links in the image are the guest's business.
    pub fn volume_paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.volumes.keys().map(|raw| rooted(raw)).collect();
        paths.sort();
        paths.dedup();
        paths.retain(|path| path != "/");
        paths
    }

    fn check_strings(&self) -> Result<(), ConfigError> {
        let lists = [("Env", &self.env), ("Entrypoint", &self.entrypoint), ("Cmd", &self.cmd)];
        for (name, list) in lists {
            if list.iter().any(|text| text.contains('\0')) {
                return Err(ConfigError::Nul(name));
            }
        }
        for (name, text) in
            [("User", &self.user), ("WorkingDir", &self.working_dir), ("StopSignal", &self.stop_signal)]
        {
            if text.contains('\0') {
                return Err(ConfigError::Nul(name));
            }
        }
        if self.volumes.keys().any(|path| path.contains('\0')) {
            return Err(ConfigError::Nul("Volumes"));
        }
        Ok(())
    }
}

fn rooted(raw: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in raw.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// A list of words, or one word alone.
fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        List(Vec<String>),
        One(String),
    }
    Ok(match Option::<Words>::deserialize(from)? {
        Some(Words::List(list)) => list,
        Some(Words::One(word)) => vec![word],
        None => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const A: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn amd64() -> Platform {
        Platform { os: "linux".into(), architecture: "amd64".into(), variant: None }
    }

    fn document(config: Value) -> Value {
        json!({"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": [A]}})
    }

    fn parse(document: &Value) -> Result<ImageConfig, ConfigError> {
        ImageConfig::parse(document.to_string().as_bytes(), &amd64())
    }

    #[test]
    fn every_field_is_read() {
        let parsed = parse(&document(json!({
            "User": "www", "Env": ["A=b"], "Entrypoint": ["/e"], "Cmd": ["c"], "WorkingDir": "/w",
            "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGINT", "Labels": {"k": "v"},
        })))
        .unwrap();
        let config = &parsed.config;
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("www", "/w"));
        assert_eq!((config.env[0].as_str(), config.stop_signal.as_str()), ("A=b", "SIGINT"));
        assert_eq!(
            (&config.entrypoint[..], &config.cmd[..]),
            (&["/e".to_owned()][..], &["c".to_owned()][..])
        );
        assert_eq!(config.labels["k"], "v");
        assert_eq!(config.exposed_ports.keys().next().unwrap(), "80/tcp");
        let again = serde_json::to_vec(&parsed).unwrap();
        assert_eq!(ImageConfig::parse(&again, &amd64()).unwrap(), parsed);
    }

    #[test]
    fn null_and_missing_fields_are_empty() {
        let nulls = json!({"User": null, "Env": null, "Entrypoint": null, "Cmd": null, "Volumes": null, "Labels": null});
        assert_eq!(parse(&document(nulls)).unwrap().config, ContainerConfig::default());
        assert_eq!(parse(&document(Value::Null)).unwrap().config, ContainerConfig::default());
        assert_eq!(parse(&document(json!({"Entrypoint": "sh"}))).unwrap().config.entrypoint, ["sh"]);
    }

    #[test]
    fn other_platforms_are_refused() {
        let mut other = document(json!({}));
        other["architecture"] = json!("arm64");
        let message = parse(&other).unwrap_err().to_string();
        assert_eq!(message, "image is for linux/arm64, this machine runs linux/amd64");
    }

    #[test]
    fn i10_volume_paths_stay_in_the_rootfs() {
        let config = parse(&document(json!({"Volumes": {
            "/../../etc": {}, "data/../../x": {}, "/a/./b//c/": {}, "/..": {}, "": {},
        }})))
        .unwrap();
        assert_eq!(config.config.volume_paths(), ["/a/b/c", "/etc", "/x"]);
    }

    #[test]
    fn nul_bytes_are_refused() {
        for field in ["Env", "Cmd", "Entrypoint"] {
            assert!(
                matches!(parse(&document(json!({field: ["a\0b"]}))), Err(ConfigError::Nul(name)) if name == field)
            );
        }
        assert!(matches!(parse(&document(json!({"User": "\0"}))), Err(ConfigError::Nul("User"))));
    }

    #[test]
    fn rootfs_must_have_layers() {
        let mut none = document(json!({}));
        none["rootfs"]["diff_ids"] = json!([]);
        assert!(matches!(parse(&none), Err(ConfigError::LayerCount(0))));
        none["rootfs"] = json!({"type": "dir", "diff_ids": [A]});
        assert!(matches!(parse(&none), Err(ConfigError::RootfsType(_))));
        none["rootfs"] = json!({"type": "layers", "diff_ids": ["sha256:../.."]});
        assert!(matches!(parse(&none), Err(ConfigError::Json(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not_without_panic(bytes: Vec<u8>) {
            let _ = ImageConfig::parse(&bytes, &amd64());
        }

        #[test]
        fn i10_no_volume_path_keeps_a_dot_dot(raw in "[a./]{0,24}") {
            let path = rooted(&raw);
            prop_assert!(path.starts_with('/'));
            prop_assert!(path.split('/').all(|part| part != ".." && part != "."));
        }
    }
}
