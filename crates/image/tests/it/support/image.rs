//! Images made in memory.

use std::collections::BTreeMap;
use std::io::Write;

use nacre_image::Digest;
use nacre_image::manifest::{DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use serde_json::{Value, json};

use super::server::{Reply, Request};

/// A layer as it is in a registry.
#[derive(Clone)]
pub struct TestLayer {
    pub bytes: Vec<u8>,
    pub diff_id: Digest,
    pub media_type: String,
}

/// A tar stream with these files.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that no compressor shrinks.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| step()).collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl TestLayer {
    pub fn plain(tar: &[u8]) -> Self {
        Self::new(tar, tar.to_vec(), "application/vnd.oci.image.layer.v1.tar")
    }

    pub fn gzip(tar: &[u8]) -> Self {
        Self::new(tar, gzip(tar), "application/vnd.oci.image.layer.v1.tar+gzip")
    }

    pub fn zstd(tar: &[u8]) -> Self {
        let bytes = zstd::encode_all(tar, 1).unwrap();
        Self::new(tar, bytes, "application/vnd.oci.image.layer.v1.tar+zstd")
    }

    pub fn new(tar: &[u8], bytes: Vec<u8>, media_type: &str) -> Self {
        Self { diff_id: Digest::sha256(tar), bytes, media_type: media_type.into() }
    }

    pub fn digest(&self) -> Digest {
        Digest::sha256(&self.bytes)
    }

    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len()})
    }
}

/// An image under `demo/app:latest`, as documents that a test may still change.
#[derive(Clone)]
pub struct TestImage {
    pub layers: Vec<TestLayer>,
    pub config: Value,
    pub manifest: Value,
    pub manifest_type: String,
    pub index: Option<Value>,
}

impl TestImage {
    pub fn new(layers: Vec<TestLayer>) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Cmd": ["sh"], "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let mut image =
            Self { layers, config, manifest: Value::Null, manifest_type: OCI_MANIFEST.into(), index: None };
        image.seal(OCI_MANIFEST, OCI_CONFIG);
        image
    }

    /// One file in one gzip layer.
    pub fn small() -> Self {
        Self::new(vec![TestLayer::gzip(&tar_of(&[("hello", b"world")]))])
    }

    /// Writes the manifest anew from configuration and layers.
    pub fn seal(&mut self, manifest_type: &str, config_type: &str) {
        let config = self.config_bytes();
        self.manifest_type = manifest_type.into();
        self.manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": Digest::sha256(&config), "size": config.len()},
            "layers": self.layers.iter().map(TestLayer::descriptor).collect::<Vec<_>>(),
        });
    }

    pub fn into_docker(mut self) -> Self {
        for layer in &mut self.layers {
            layer.media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
        }
        self.seal(DOCKER_MANIFEST, DOCKER_CONFIG);
        self
    }

    /// Puts an index in front, with a variant for another machine.
    pub fn with_index(mut self) -> Self {
        let bytes = self.manifest_bytes();
        self.index = Some(json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            {"mediaType": OCI_MANIFEST, "digest": Digest::sha256(b"other"), "size": 5, "platform": {"os": "linux", "architecture": "arm64"}},
            {"mediaType": OCI_MANIFEST, "digest": Digest::sha256(&bytes), "size": bytes.len(), "platform": {"os": "linux", "architecture": "amd64"}},
        ]}));
        self
    }

    pub fn config_bytes(&self) -> Vec<u8> {
        self.config.to_string().into_bytes()
    }

    pub fn id(&self) -> Digest {
        Digest::sha256(&self.config_bytes())
    }

    pub fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    /// Everything by its path under `/v2/demo/app/`, with its type.
    pub fn content(&self, tag: &str) -> BTreeMap<String, (String, Vec<u8>)> {
        let mut content = BTreeMap::new();
        let manifest = self.manifest_bytes();
        let top = match &self.index {
            Some(index) => (OCI_INDEX.to_owned(), index.to_string().into_bytes()),
            None => (self.manifest_type.clone(), manifest.clone()),
        };
        content.insert(format!("manifests/{}", Digest::sha256(&top.1)), top.clone());
        content.insert(format!("manifests/{tag}"), top);
        content.insert(
            format!("manifests/{}", Digest::sha256(&manifest)),
            (self.manifest_type.clone(), manifest),
        );
        let octets = || "application/octet-stream".to_owned();
        content.insert(format!("blobs/{}", self.id()), (octets(), self.config_bytes()));
        for layer in &self.layers {
            content.insert(format!("blobs/{}", layer.digest()), (octets(), layer.bytes.clone()));
        }
        content
    }

    /// A handler that serves the image as `demo/app:latest`.
    pub fn serve(&self) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
        serve(self.content("latest"))
    }
}

/// A handler that serves content as a well-behaved registry does.
pub fn serve(
    content: BTreeMap<String, (String, Vec<u8>)>,
) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    move |request| {
        let path = request.path.strip_prefix("/v2/demo/app/").unwrap_or("");
        let Some((media_type, bytes)) = content.get(path) else { return Reply::status(404) };
        let digest = Digest::sha256(bytes).to_string();
        let reply = match request.range_start() {
            Some(first) if path.starts_with("blobs/") => Reply::part(bytes, first),
            _ => Reply::ok(bytes.clone()),
        };
        reply.header("Content-Type", media_type).header("Docker-Content-Digest", &digest)
    }
}
