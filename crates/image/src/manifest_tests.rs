use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const A: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn layer() -> Value {
    json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": A, "size": 1})
}

fn manifest() -> Value {
    json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": A, "size": 2}, "layers": [layer()],
    })
}

fn index() -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": A, "size": 3, "platform": {"os": "linux", "architecture": "arm64"}},
        {"mediaType": OCI_MANIFEST, "digest": A, "size": 5, "platform": {"os": "linux", "architecture": "amd64", "variant": "v3"}},
        {"mediaType": OCI_MANIFEST, "digest": A, "size": 4, "platform": {"os": "linux", "architecture": "amd64"}},
        {"mediaType": OCI_MANIFEST, "digest": A, "size": 6, "platform": {"os": "unknown", "architecture": "unknown"}},
    ]})
}

fn amd64() -> Platform {
    Platform { os: "linux".into(), architecture: "amd64".into(), variant: None }
}

fn parse(document: &Value, declared: Option<&str>) -> Result<Document, ManifestError> {
    Document::parse(document.to_string().as_bytes(), declared)
}

fn set(mut document: Value, field: &str, value: Value) -> Value {
    document[field] = value;
    document
}

#[test]
fn manifest_is_parsed_with_and_without_a_header() {
    for declared in [
        None,
        Some(OCI_MANIFEST),
        Some("application/json"),
        Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
    ] {
        let Document::Manifest(parsed) = parse(&manifest(), declared).unwrap() else { panic!("an index") };
        assert_eq!((parsed.config.size, parsed.layers.len()), (2, 1));
    }
}

#[test]
fn index_chooses_the_plain_variant_of_the_architecture() {
    let Document::Index(entries) = parse(&index(), Some(OCI_INDEX)).unwrap() else { panic!("a manifest") };
    assert_eq!(select(&entries, &amd64()).unwrap().size, 4);
    let riscv = Platform { architecture: "riscv64".into(), ..amd64() };
    let message = select(&entries, &riscv).unwrap_err().to_string();
    assert!(message.contains("linux/riscv64") && message.contains("linux/arm64"), "{message}");
}

#[test]
fn i06_layers_and_manifests_together_are_refused() {
    let both = set(manifest(), "manifests", index()["manifests"].clone());
    assert!(matches!(parse(&both, None), Err(ManifestError::Ambiguous(_))));
    let both = set(index(), "layers", json!([layer()]));
    assert!(matches!(parse(&both, None), Err(ManifestError::Ambiguous(_))));
    let both = set(index(), "config", manifest()["config"].clone());
    assert!(matches!(parse(&both, None), Err(ManifestError::Ambiguous(_))));
}

#[test]
fn i06_header_and_field_that_disagree_are_refused() {
    for declared in [OCI_INDEX, DOCKER_LIST, DOCKER_MANIFEST] {
        assert!(matches!(parse(&manifest(), Some(declared)), Err(ManifestError::Ambiguous(_))), "{declared}");
    }
    let untyped = set(manifest(), "mediaType", Value::Null);
    assert!(matches!(parse(&untyped, Some(OCI_INDEX)), Err(ManifestError::Ambiguous(_))));
    let wrong = set(manifest(), "mediaType", json!(OCI_INDEX));
    assert!(matches!(parse(&wrong, None), Err(ManifestError::Ambiguous(_))));
}

#[test]
fn i06_fields_twice_or_in_other_letters_are_refused() {
    let twice = manifest().to_string().replacen('{', r#"{"layers":[],"#, 1);
    assert!(Document::parse(twice.as_bytes(), None).is_err());
    let cased = set(manifest(), "Manifests", json!([]));
    assert!(matches!(parse(&cased, None), Err(ManifestError::Ambiguous(_))));
    let cased = set(manifest(), "LAYERS", json!([]));
    assert!(matches!(parse(&cased, None), Err(ManifestError::Ambiguous(_))));
}

#[test]
fn schema_1_is_refused_by_name() {
    let old = json!({"schemaVersion": 1, "name": "x", "fsLayers": []});
    assert!(matches!(parse(&old, None), Err(ManifestError::Schema1)));
    let signed = Some("application/vnd.docker.distribution.manifest.v1+prettyjws");
    assert!(matches!(parse(&manifest(), signed), Err(ManifestError::Schema1)));
}

#[test]
fn artifacts_and_foreign_layers_are_refused() {
    let chart = set(
        manifest(),
        "config",
        json!({"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": A, "size": 1}),
    );
    assert!(matches!(parse(&chart, None), Err(ManifestError::NotAnImage(_))));
    for media_type in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "",
    ] {
        let odd = set(manifest(), "layers", json!([{"mediaType": media_type, "digest": A, "size": 1}]));
        assert!(matches!(parse(&odd, None), Err(ManifestError::LayerType(_))), "{media_type}");
    }
}

#[test]
fn layer_counts_and_sizes_are_bounded() {
    for count in [0, MAX_LAYERS + 1] {
        let document = set(manifest(), "layers", json!(vec![layer(); count]));
        assert!(matches!(parse(&document, None), Err(ManifestError::LayerCount(_))), "{count}");
    }
    let huge = set(
        manifest(),
        "config",
        json!({"mediaType": OCI_CONFIG, "digest": A, "size": MAX_DOCUMENT_BYTES + 1}),
    );
    assert!(matches!(parse(&huge, None), Err(ManifestError::TooLarge(_))));
    let negative = set(manifest(), "layers", json!([{"mediaType": DOCKER_CONFIG, "digest": A, "size": -1}]));
    assert!(matches!(parse(&negative, None), Err(ManifestError::Json(_))));
    let long = vec![b' '; MAX_DOCUMENT_BYTES as usize + 1];
    assert!(matches!(Document::parse(&long, None), Err(ManifestError::TooLarge(_))));
}

#[test]
fn i07_bad_digest_in_a_descriptor_is_refused() {
    let bad = manifest().to_string().replace(A, "sha256:../../../etc/passwd");
    assert!(matches!(Document::parse(bad.as_bytes(), None), Err(ManifestError::Json(_))));
}

proptest! {
    #[test]
    fn any_bytes_parse_or_not_without_panic(bytes: Vec<u8>, declared in proptest::option::of(".{0,40}")) {
        let _ = Document::parse(&bytes, declared.as_deref());
    }

    #[test]
    fn damaged_manifests_never_panic(at in 0usize..400, byte: u8) {
        let mut bytes = manifest().to_string().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = Document::parse(&bytes, Some(OCI_MANIFEST));
    }
}
