//! `-info`: what containerd 2 asks of a runtime before it uses it, and tells kubelets of.

use std::io::Write;

use anyhow::{Context as _, Result};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;
use serde_json::{Value, json};

use crate::args::NAME;

/// Name of the Go type that containerd decodes the features into, from JSON.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// What is left out of the Task API.
const CHECKPOINT: (&str, &str) = ("io.nacre.checkpoint", "unimplemented");

/// Options of a mount that the agent knows, besides those that the file system gets (`crates/agent/src/container/plan/mounts.rs`).
/// A kubelet offers recursive read-only mounts where it finds "rro".
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "idmap",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "rw",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "tmpcopyup",
];

/// Prints a RuntimeInfo message. The options on standard input change nothing of it.
pub(crate) fn info() -> Result<()> {
    let bytes = message()?.write_to_bytes().context("cannot encode")?;
    std::io::stdout().write_all(&bytes).context("cannot print")
}

fn message() -> Result<RuntimeInfo> {
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..RuntimeVersion::default() };
    let features = Any {
        type_url: FEATURES_TYPE.to_owned(),
        value: serde_json::to_vec(&features()).context("cannot encode the features")?,
        ..Any::default()
    };
    let (key, value) = CHECKPOINT;
    Ok(RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(version).into(),
        features: Some(features).into(),
        annotations: [(key.to_owned(), value.to_owned())].into(),
        ..RuntimeInfo::default()
    })
}

/// What a container can be given (OCI runtime specification, features.md).
fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": {"v1": false, "v2": true},
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE",
                ],
            },
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            // So that a kubelet offers hostUsers: false.
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_finds_features_and_what_is_left_out() {
        let bytes = message().unwrap().write_to_bytes().unwrap();
        let info = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!(info.name, "containerd-shim-nacre-v2");
        assert_eq!(info.annotations["io.nacre.checkpoint"], "unimplemented");
        assert_eq!(info.features.type_url, FEATURES_TYPE);
        let features: Value = serde_json::from_slice(&info.features.value).unwrap();
        assert!(features["mountOptions"].as_array().unwrap().contains(&"rro".into()));
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
        assert!(MOUNT_OPTIONS.is_sorted(), "people look words up");
    }
}
