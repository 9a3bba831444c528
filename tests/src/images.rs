//! The images that a containerd is given: the test image, and the same layers with other configurations.
//!
//! One archive holds them all and is made once for all containerds of the process: an import of its own for each image would
//! take most of the time that a containerd needs to start.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::sandbox::{Outcome, TestSandbox};

/// The test image.
pub const IMAGE: &str = "localhost/e2e:latest";

/// The same with a command that sleeps, for the sandboxes of pods.
pub const PAUSE: &str = "localhost/pause:latest";

/// The same with a user, a directory, an entry point, a variable and a stop signal.
pub const CONFIGURED: &str = "localhost/configured:latest";

/// Names the image in the index of an archive.
const NAME: &str = "io.containerd.image.name";

/// What an image has beside the configuration of the test image.
fn images() -> [(&'static str, Value); 3] {
    let begun = "trap 'echo told; exit 3' USR1; echo begun; while true; do sleep 0.1; done";
    let configured = json!({
        "User": "nobody:nogroup",
        "WorkingDir": "/var/tmp/work",
        "Entrypoint": ["sh", "-c"],
        "Cmd": [begun],
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "GREETING=from the image"],
        "StopSignal": "SIGUSR1",
    });
    [(IMAGE, json!({})), (PAUSE, json!({"Cmd": ["sleep", "2000000000"]})), (CONFIGURED, configured)]
}

/// The archive of all images, for `ctr image import`.
pub(crate) fn archive() -> &'static Path {
    static ARCHIVE: OnceLock<PathBuf> = OnceLock::new();
    ARCHIVE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory").keep();
        let (layout, archive) = (dir.join("layout"), dir.join("images.tar"));
        write_layout(&layout);
        let mut tar = Command::new("tar");
        Outcome::of(tar.arg("-cf").arg(&archive).arg("-C").arg(&layout).arg(".")).ok();
        fs::remove_dir_all(&layout).expect("a layout to remove");
        archive
    })
}

fn write_layout(layout: &Path) {
    let image = TestSandbox::image();
    let source = image.strip_prefix("oci:").and_then(|rest| rest.rsplit_once(':')).expect("oci:DIR:TAG").0;
    Outcome::of(Command::new("cp").arg("-r").arg(source).arg(layout)).ok();
    let index = read(&layout.join("index.json"));
    let manifest = read(&blob(layout, &index["manifests"][0]["digest"]));
    let config = read(&blob(layout, &manifest["config"]["digest"]));
    let manifests: Vec<Value> = images()
        .into_iter()
        .map(|(name, change)| {
            let (mut manifest, mut config) = (manifest.clone(), config.clone());
            for (key, value) in change.as_object().into_iter().flatten() {
                config["config"][key] = value.clone();
            }
            let config = write_blob(layout, &config);
            for key in ["digest", "size"] {
                manifest["config"][key] = config[key].clone();
            }
            let mut entry = write_blob(layout, &manifest);
            entry["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
            entry["annotations"] = json!({NAME: name});
            entry
        })
        .collect();
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(layout.join("index.json"), index.to_string()).expect("an index");
}

fn read(path: &Path) -> Value {
    let text = fs::read(path).expect("a file of the test image's");
    serde_json::from_slice(&text).expect("JSON")
}

fn blob(layout: &Path, digest: &Value) -> PathBuf {
    let hash = digest.as_str().and_then(|digest| digest.strip_prefix("sha256:")).expect("a digest");
    layout.join("blobs/sha256").join(hash)
}

/// Writes a document; its digest and size, as a descriptor has them.
fn write_blob(layout: &Path, document: &Value) -> Value {
    let text = document.to_string();
    let hash: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = Value::from(format!("sha256:{hash}"));
    fs::write(blob(layout, &digest), &text).expect("a blob");
    json!({"digest": digest, "size": text.len()})
}
