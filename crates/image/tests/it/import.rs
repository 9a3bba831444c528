//! OCI layouts, OCI archives and docker-save archives.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nacre_image::manifest::OCI_MANIFEST;
use nacre_image::{Digest, Image, ImportError, LocalKind, Store, import, progress};
use serde_json::json;

use crate::support::image::{gzip, noise, tar_of};
use crate::support::{Bench, TestImage, TestLayer, chain};

type Files = BTreeMap<String, Vec<u8>>;

fn two_layers() -> TestImage {
    TestImage::new(vec![
        TestLayer::gzip(&tar_of(&[("a", &noise(100_000))])),
        TestLayer::zstd(&tar_of(&[("b", b"b")])),
    ])
}

fn blob(files: &mut Files, bytes: Vec<u8>) {
    files.insert(format!("blobs/sha256/{}", Digest::sha256(&bytes).hex()), bytes);
}

/// A layout with one image for each name.
fn layout(images: &[(&str, &TestImage)]) -> Files {
    let mut files = Files::new();
    let mut manifests = Vec::new();
    for (name, image) in images {
        let manifest = image.manifest_bytes();
        manifests.push(json!({
            "mediaType": OCI_MANIFEST, "digest": Digest::sha256(&manifest), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": name},
        }));
        blob(&mut files, manifest);
        blob(&mut files, image.config_bytes());
        for layer in &image.layers {
            blob(&mut files, layer.bytes.clone());
        }
    }
    files.insert(
        "index.json".into(),
        json!({"schemaVersion": 2, "manifests": manifests}).to_string().into_bytes(),
    );
    files.insert("oci-layout".into(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec());
    files
}

/// What `docker save` wrote before it wrote layouts.
fn saved(image: &TestImage, tar: &[u8]) -> Files {
    let config = format!("{}.json", image.id().hex());
    let manifest = json!([{"Config": config, "RepoTags": ["demo/app:1"], "Layers": ["1/layer.tar"]}]);
    let mut files = Files::new();
    files.insert(config, image.config_bytes());
    files.insert("1/layer.tar".into(), tar.to_vec());
    files.insert("manifest.json".into(), manifest.to_string().into_bytes());
    files
}

fn write_dir(root: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn write_tar(files: &Files) -> Vec<u8> {
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    tar_of(&files)
}

fn bring(bench: &Bench, kind: LocalKind, path: &Path, select: Option<&str>) -> Result<Image, ImportError> {
    import(&bench.store, kind, path, select, &bench.options, &progress::silent)
}

fn bring_tar(bench: &Bench, kind: LocalKind, bytes: &[u8]) -> Result<Image, ImportError> {
    let path = bench.dir.path().join("archive.tar");
    fs::write(&path, bytes).unwrap();
    bring(bench, kind, &path, None)
}

#[test]
fn layout_directory_is_imported() {
    let image = two_layers();
    let bench = Bench::new();
    let dir = bench.dir.path().join("layout");
    write_dir(&dir, &layout(&[("latest", &image)]));

    let imported = bring(&bench, LocalKind::OciDir, &dir, Some("latest")).unwrap();

    assert_eq!(imported.id, image.id());
    assert_eq!(imported.layers.len(), 2);
    assert_eq!(bring(&bench, LocalKind::OciDir, &dir, None).unwrap(), imported);
    bench.store.verify(&imported).unwrap();
    bench.assert_tidy();
}

#[test]
fn layout_archive_is_imported_plain_and_compressed() {
    let image = two_layers();
    let tar = write_tar(&layout(&[("latest", &image)]));
    for bytes in [tar.clone(), gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap()] {
        let bench = Bench::new();
        assert_eq!(bring_tar(&bench, LocalKind::OciArchive, &bytes).unwrap().id, image.id());
        bench.assert_tidy();
    }
}

#[test]
fn full_name_in_a_layout_becomes_the_images_name() {
    let image = two_layers();
    let bench = Bench::new();
    bring_tar(&bench, LocalKind::OciArchive, &write_tar(&layout(&[("demo/app:2", &image)]))).unwrap();
    assert_eq!(bench.store.find("demo/app:2").unwrap().unwrap().id, image.id());
}

#[test]
fn image_of_a_layout_without_a_full_name_is_called_after_the_directory() {
    let image = two_layers();
    let bench = Bench::new();
    let dir = bench.dir.path().join("My.Layout");
    write_dir(&dir, &layout(&[("v1", &image)]));
    bring(&bench, LocalKind::OciDir, &dir, None).unwrap();
    assert_eq!(bench.store.find("localhost/my.layout:v1").unwrap().unwrap().id, image.id());
    let listed = bench.store.list().unwrap();
    assert_eq!(
        listed[0].names.iter().map(|name| name.familiar()).collect::<Vec<_>>(),
        ["localhost/my.layout:v1"]
    );
}

#[test]
fn saved_archive_without_tags_is_called_after_its_file() {
    let tar = tar_of(&[("file", &noise(70_000))]);
    let image = TestImage::new(vec![TestLayer::plain(&tar)]);
    let mut files = saved(&image, &tar);
    let untagged =
        String::from_utf8(files["manifest.json"].clone()).unwrap().replace(r#"["demo/app:1"]"#, "null");
    files.insert("manifest.json".into(), untagged.into_bytes());
    let bench = Bench::new();
    bring_tar(&bench, LocalKind::DockerArchive, &write_tar(&files)).unwrap();
    assert_eq!(bench.store.find("localhost/archive").unwrap().unwrap().id, image.id());
}

#[test]
fn saved_archive_is_imported_under_its_tag() {
    let tar = tar_of(&[("file", &noise(70_000))]);
    let image = TestImage::new(vec![TestLayer::plain(&tar)]);
    let bench = Bench::new();
    let imported = bring_tar(&bench, LocalKind::DockerArchive, &write_tar(&saved(&image, &tar))).unwrap();
    assert_eq!((&imported.id, &imported.manifest_digest), (&image.id(), &None));
    assert_eq!(bench.store.find("demo/app:1").unwrap(), Some(imported));
}

#[test]
fn image_in_a_layout_is_chosen_by_name() {
    let (one, two) = (TestImage::small(), two_layers());
    let bench = Bench::new();
    let dir = bench.dir.path().join("layout");
    write_dir(&dir, &layout(&[("one", &one), ("two", &two)]));

    assert_eq!(bring(&bench, LocalKind::OciDir, &dir, Some("two")).unwrap().id, two.id());
    let several = bring(&bench, LocalKind::OciDir, &dir, None).unwrap_err().to_string();
    assert!(several.ends_with("append one of their names: one, two"), "{several}");
    let missing = bring(&bench, LocalKind::OciDir, &dir, Some("three")).unwrap_err().to_string();
    assert!(missing.contains("no image called \"three\"; it has: one, two"), "{missing}");
}

#[test]
fn damaged_blobs_are_refused() {
    let image = two_layers();
    let good = layout(&[("latest", &image)]);
    for name in good.keys().filter(|name| name.starts_with("blobs/")) {
        let bench = Bench::new();
        let mut files = good.clone();
        files.remove(name);
        let error = bring_tar(&bench, LocalKind::OciArchive, &write_tar(&files)).unwrap_err();
        assert!(matches!(error, ImportError::Missing { .. }), "{name}: {error:?}");

        let bench = Bench::new();
        let mut bytes = good[name].clone();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        files.insert(name.clone(), bytes);
        let error = bring_tar(&bench, LocalKind::OciArchive, &write_tar(&files)).unwrap_err();
        assert!(
            matches!(error, ImportError::Damaged { .. } | ImportError::Layer { .. }),
            "{name}: {error:?}"
        );
        assert!(bench.store.list().unwrap().is_empty());
        bench.assert_tidy();
    }
}

#[test]
fn saved_layer_with_another_content_is_refused() {
    let tar = tar_of(&[("file", b"good")]);
    let image = TestImage::new(vec![TestLayer::plain(&tar)]);
    let files = saved(&image, &tar_of(&[("file", b"evil")]));
    let bench = Bench::new();
    let error = bring_tar(&bench, LocalKind::DockerArchive, &write_tar(&files)).unwrap_err();
    assert!(chain(&error).contains("but the image configuration says"), "{}", chain(&error));
    bench.assert_untouched();
}

#[test]
fn saved_archive_that_points_outside_is_refused() {
    let tar = tar_of(&[("file", b"x")]);
    let image = TestImage::new(vec![TestLayer::plain(&tar)]);
    let bench = Bench::new();
    for outside in ["../../etc/passwd", "/etc/passwd", "blobs/sha256/../../../etc/passwd"] {
        let mut files = saved(&image, &tar);
        let manifest = json!([{"Config": outside, "Layers": [outside]}]);
        files.insert("manifest.json".into(), manifest.to_string().into_bytes());
        let error = bring_tar(&bench, LocalKind::DockerArchive, &write_tar(&files)).unwrap_err();
        assert!(matches!(error, ImportError::Missing { .. }), "{outside}: {error:?}");
    }
    bench.assert_untouched();
}

#[test]
fn i07_bad_digests_in_a_layout_are_refused() {
    let bench = Bench::new();
    let dir = bench.dir.path().join("layout");
    let mut files = layout(&[]);
    let index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": "sha256:../../../etc/passwd", "size": 1},
    ]});
    files.insert("index.json".into(), index.to_string().into_bytes());
    write_dir(&dir, &files);
    let error = bring(&bench, LocalKind::OciDir, &dir, None).unwrap_err();
    assert!(matches!(error, ImportError::Manifest { .. }), "{error:?}");
}

#[test]
fn what_is_no_image_is_named() {
    let bench = Bench::new();
    let empty = bench.dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let error = bring(&bench, LocalKind::OciDir, &empty, None).unwrap_err().to_string();
    assert!(error.ends_with("has no oci-layout: is it really an OCI image layout?"), "{error}");
    let error = bring_tar(&bench, LocalKind::DockerArchive, b"hello").unwrap_err();
    assert!(matches!(error, ImportError::Tar { .. }), "{error:?}");
    let error =
        bring(&bench, LocalKind::OciArchive, Path::new("/nonexistent"), None).unwrap_err().to_string();
    assert_eq!(error, "cannot read /nonexistent");
}

#[test]
fn compressed_archive_larger_than_allowed_is_refused() {
    let mut bench = Bench::new();
    bench.options.layer.stream_bytes = 1 << 20;
    let error = bring_tar(&bench, LocalKind::OciArchive, &gzip(&vec![0; 4 << 20])).unwrap_err();
    assert!(matches!(error, ImportError::TooLarge { .. }), "{error:?}");
    bench.assert_untouched();
}

#[test]
fn store_of_a_newer_version_is_not_touched() {
    let bench = Bench::new();
    fs::write(bench.store.root().join("version"), "99\n").unwrap();
    let error = Store::open(bench.store.root()).unwrap_err().to_string();
    assert!(error.contains("has version \"99\""), "{error}");
}
