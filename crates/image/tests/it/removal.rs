//! `rmi`, `prune`, leases and `inspect`.

use nacre_image::{Digest, PruneOptions, Removed, StoreError};

use crate::support::image::{serve, tar_of};
use crate::support::{Bench, Server, TestImage, TestLayer};

/// A registry with `one:latest`, `one:again` (the same image) and `two:latest`, which shares a layer.
struct Fixture {
    server: Server,
    bench: Bench,
    one: TestImage,
    two: TestImage,
}

impl Fixture {
    fn new() -> Self {
        let shared = TestLayer::gzip(&tar_of(&[("shared", b"s")]));
        let one = TestImage::new(vec![shared.clone(), TestLayer::gzip(&tar_of(&[("one", b"1")]))]);
        let two = TestImage::new(vec![shared, TestLayer::gzip(&tar_of(&[("two", b"2")]))]);
        let mut content = one.content("latest");
        content.extend(one.content("again"));
        content.extend(two.content("two"));
        Self { server: Server::start(serve(content)), bench: Bench::new(), one, two }
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/demo/app:{tag}", self.server.host())
    }

    fn pull(&self, tag: &str) -> nacre_image::Image {
        self.bench.pull(&self.name(tag)).unwrap()
    }

    fn ids(&self) -> Vec<Digest> {
        self.bench.store.list().unwrap().into_iter().map(|image| image.id).collect()
    }
}

#[test]
fn first_of_two_names_only_untags() {
    let fixture = Fixture::new();
    fixture.pull("latest");
    fixture.pull("again");
    let removed = fixture.bench.store.remove(&fixture.name("again"), false).unwrap();
    assert_eq!(removed, [Removed::Untagged(fixture.name("again").parse().unwrap())]);
    assert_eq!(fixture.ids(), [fixture.one.id()]);
}

#[test]
fn last_name_takes_image_and_unshared_layers() {
    let fixture = Fixture::new();
    fixture.pull("latest");
    let two = fixture.pull("two");

    let removed = fixture.bench.store.remove(&fixture.name("latest"), false).unwrap();

    assert!(removed.contains(&Removed::Image(fixture.one.id())));
    assert!(removed.contains(&Removed::Layer(fixture.one.layers[1].diff_id.clone())));
    assert!(!removed.contains(&Removed::Layer(fixture.one.layers[0].diff_id.clone())));
    assert_eq!(fixture.bench.store.image(&fixture.two.id()).unwrap(), Some(two));
    fixture.bench.store.remove(fixture.two.id().short(), false).unwrap();
    fixture.bench.assert_untouched();
}

#[test]
fn image_in_use_is_kept_until_its_container_is_gone() {
    let fixture = Fixture::new();
    let image = fixture.pull("latest");
    let store = &fixture.bench.store;
    store.lease("web", &image).unwrap();

    let refused = store.remove(&fixture.name("latest"), false).unwrap_err();
    assert!(matches!(&refused, StoreError::InUse { container, .. } if container == "web"), "{refused}");
    assert!(store.prune(PruneOptions { all: true }).unwrap().removed.is_empty());
    assert_eq!(store.find(&fixture.name("latest")).unwrap().as_ref(), Some(&image));

    store.remove(&fixture.name("latest"), true).unwrap();
    assert_eq!(store.find(&fixture.name("latest")).unwrap(), None);
    assert_eq!(store.image(&image.id).unwrap(), Some(image));

    store.release("web").unwrap();
    assert!(store.leases().unwrap().is_empty());
    store.prune(PruneOptions::default()).unwrap();
    fixture.bench.assert_untouched();
}

#[test]
fn lease_on_a_removed_image_is_refused() {
    let fixture = Fixture::new();
    let image = fixture.pull("latest");
    fixture.bench.store.remove(&fixture.name("latest"), false).unwrap();
    assert!(matches!(fixture.bench.store.lease("web", &image), Err(StoreError::LayerMissing { .. })));
}

#[test]
fn prune_takes_images_without_a_tag_and_on_request_all() {
    let fixture = Fixture::new();
    fixture.pull("latest");
    let digest = Digest::sha256(&fixture.two.manifest_bytes());
    fixture.bench.pull(&format!("{}/demo/app@{digest}", fixture.server.host())).unwrap();

    fixture.bench.store.prune(PruneOptions::default()).unwrap();
    assert_eq!(fixture.ids(), [fixture.one.id()]);
    fixture.bench.store.prune(PruneOptions { all: true }).unwrap();
    fixture.bench.assert_untouched();
}

#[test]
fn unknown_and_ambiguous_names_are_told_apart() {
    let fixture = Fixture::new();
    fixture.pull("latest");
    assert!(matches!(fixture.bench.store.remove("nothing", false), Err(StoreError::NotFound(_))));
    assert!(matches!(fixture.bench.store.inspect("nothing"), Err(StoreError::NotFound(_))));
    assert_eq!(fixture.bench.store.find("../../etc/passwd").unwrap(), None);
    assert_eq!(fixture.bench.store.find("").unwrap(), None);
}

#[test]
fn inspect_speaks_dockers_language() {
    let fixture = Fixture::new();
    fixture.pull("latest");
    fixture.pull("again");
    let json = fixture.bench.store.inspect(&fixture.name("latest")).unwrap();
    assert_eq!(json["Id"], fixture.one.id().to_string());
    assert_eq!(json["RepoTags"], serde_json::json!([fixture.name("again"), fixture.name("latest")]));
    let digest = Digest::sha256(&fixture.one.manifest_bytes());
    assert_eq!(
        json["RepoDigests"],
        serde_json::json!([format!("{}/demo/app@{digest}", fixture.server.host())])
    );
    assert_eq!(json["Config"]["Cmd"], serde_json::json!(["sh"]));
    assert_eq!(json["RootFS"]["Layers"][1], fixture.one.layers[1].diff_id.to_string());
    assert_eq!(json["Os"], "linux");
}
