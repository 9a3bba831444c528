//! The part of the OCI configuration that planning reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::hooks::Hook;
use crate::users::IdMap;

#[derive(Debug, Deserialize)]
pub(super) struct Spec {
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) root: Root,
    pub(super) process: Option<Process>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) hostname: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) hooks: Hooks,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Root {
    pub(super) path: String,
    pub(super) readonly: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    #[serde(default)]
    pub(super) cwd: String,
    pub(super) console_size: Option<ConsoleSize>,
    pub(super) oom_score_adj: Option<i32>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct ConsoleSize {
    pub(super) height: u32,
    pub(super) width: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Hooks {
    #[serde(deserialize_with = "null_as_default")]
    pub(super) prestart: Vec<Hook>,
    #[serde(deserialize_with = "null_as_default")]
    pub(super) create_runtime: Vec<Hook>,
    #[serde(deserialize_with = "null_as_default")]
    pub(super) poststart: Vec<Hook>,
    #[serde(deserialize_with = "null_as_default")]
    pub(super) poststop: Vec<Hook>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Linux {
    #[serde(deserialize_with = "null_as_default")]
    pub(super) namespaces: Vec<Namespace>,
    #[serde(deserialize_with = "null_as_default")]
    pub(super) resources: Resources,
    #[serde(deserialize_with = "null_as_default")]
    pub(super) cgroups_path: String,
    #[serde(deserialize_with = "null_as_default")]
    pub(super) uid_mappings: Vec<IdMap>,
    #[serde(deserialize_with = "null_as_default")]
    pub(super) gid_mappings: Vec<IdMap>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Namespace {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) path: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Resources {
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) memory: Memory,
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) cpu: Cpu,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Memory {
    pub(crate) limit: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Cpu {
    pub(crate) shares: Option<u64>,
    pub(crate) quota: Option<i64>,
    pub(crate) period: Option<u64>,
}

/// Go writes an empty slice, map or pointer as `null`.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}
