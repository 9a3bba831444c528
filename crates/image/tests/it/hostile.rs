//! Registries that lie, stall and flood: a clear error, bounded work, and nothing left behind.

use std::time::{Duration, Instant};

use nacre_image::manifest::{DOCKER_LIST, MAX_DOCUMENT_BYTES, OCI_INDEX};
use nacre_image::registry::RegistryError;
use nacre_image::{Digest, LayerFailure, PullError};
use serde_json::json;

use crate::support::image::{gzip, noise, serve, tar_of};
use crate::support::{Bench, Reply, Server, TestImage, TestLayer, chain};

/// Pulls what the server has, expects a failure, and that the store is as before.
fn fail(server: &Server) -> PullError {
    let bench = Bench::new();
    let error = bench.pull(&server.name()).unwrap_err();
    bench.assert_untouched();
    error
}

/// An image whose layer the registry answers with `reply`.
fn with_layer_reply(reply: impl Fn(&[u8]) -> Reply + Send + Sync + 'static) -> Server {
    let layer = TestLayer::plain(&tar_of(&[("big", &noise(200_000))]));
    let (bytes, hex) = (layer.bytes.clone(), layer.digest().hex().to_owned());
    let well = TestImage::new(vec![layer]).serve();
    Server::start(move |request| if request.path.ends_with(&hex) { reply(&bytes) } else { well(request) })
}

/// An image with this layer, whatever it is.
fn with_layer(layer: TestLayer) -> Server {
    Server::start(TestImage::new(vec![layer]).serve())
}

#[test]
fn layer_with_another_content_is_refused() {
    let server = with_layer_reply(|bytes| {
        let mut other = bytes.to_vec();
        other[2000] ^= 1;
        Reply::ok(other)
    });
    let error = fail(&server);
    assert!(matches!(error, PullError::Layer { source: LayerFailure::Digest { .. }, .. }), "{error:?}");
}

#[test]
fn layer_of_another_length_is_refused() {
    for reply in [
        |bytes: &[u8]| Reply::ok(bytes[..bytes.len() - 1].to_vec()),
        |bytes: &[u8]| Reply::ok([bytes, b"x"].concat()),
        |bytes: &[u8]| Reply::chunked(&bytes[..bytes.len() - 1]),
        |bytes: &[u8]| Reply::chunked(&[bytes, b"x"].concat()),
    ] {
        let error = fail(&with_layer_reply(reply));
        assert!(matches!(error, PullError::Registry(RegistryError::Size { .. })), "{error:?}");
    }
}

#[test]
fn endless_layer_is_read_no_further_than_its_size() {
    let error = fail(&with_layer_reply(|_| Reply::endless(&[b'x'; 10_000])));
    assert!(
        matches!(
            error,
            PullError::Registry(RegistryError::Size { .. } | RegistryError::Stopped)
                | PullError::Layer { .. }
        ),
        "{error:?}"
    );
}

#[test]
fn wrong_range_after_a_break_is_refused() {
    let layer = TestLayer::plain(&tar_of(&[("big", &noise(200_000))]));
    let (bytes, hex) = (layer.bytes.clone(), layer.digest().hex().to_owned());
    let well = TestImage::new(vec![layer]).serve();
    let server = Server::start(move |request| match request.range_start() {
        _ if !request.path.ends_with(&hex) => well(request),
        None => Reply::cut(&bytes[..50_000], bytes.len()),
        Some(first) => Reply::part(&bytes, first - 1),
    });
    let error = fail(&server);
    assert!(matches!(error, PullError::Registry(RegistryError::Range { .. })), "{error:?}");
}

#[test]
fn layer_with_another_diff_id_is_refused() {
    let mut layer = TestLayer::gzip(&tar_of(&[("a", b"a")]));
    layer.diff_id = Digest::sha256(b"something else");
    let error = fail(&with_layer(layer));
    assert!(matches!(error, PullError::Layer { source: LayerFailure::DiffId { .. }, .. }), "{error:?}");
}

#[test]
fn i12_bad_layers_are_refused_and_the_next_pull_works() {
    let tar = tar_of(&[("a", &noise(100_000))]);
    let whole = gzip(&tar);
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let bench = Bench::new();
    for (what, bytes) in [
        ("cut gzip", whole[..whole.len() / 2].to_vec()),
        ("cut zstd", zstd::encode_all(&tar[..], 1).unwrap()[..5000].to_vec()),
        ("cut tar", tar[..50_000].to_vec()),
        ("noise", noise(3000)),
        ("gzip with noise behind", [whole.clone(), noise(100)].concat()),
        ("nothing", Vec::new()),
    ] {
        let server = with_layer(TestLayer::new(&tar, bytes, media_type));
        let error = bench.pull(&server.name()).unwrap_err();
        assert!(matches!(error, PullError::Layer { .. }), "{what}: {error:?}");
        bench.assert_untouched();
    }
    let begun = Instant::now();
    bench.pull(&with_layer(TestLayer::gzip(&tar)).name()).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn decompression_bomb_is_stopped_at_the_limit() {
    let zeros = vec![0; 64 << 20];
    let server = with_layer(TestLayer::gzip(&zeros));
    let mut bench = Bench::new();
    bench.options.layer.stream_bytes = 1 << 20;
    let error = chain(&bench.pull(&server.name()).unwrap_err());
    assert!(
        error.contains("more than 1048576 bytes") || error.contains("larger than 1048576 bytes"),
        "{error}"
    );
    bench.assert_untouched();
}

#[test]
fn one_bad_layer_keeps_the_image_out_but_not_its_good_layers() {
    let good = TestLayer::gzip(&tar_of(&[("good", b"g")]));
    let mut bad = TestLayer::gzip(&tar_of(&[("bad", &noise(100_000))]));
    bad.diff_id = Digest::sha256(b"lie");
    let server = Server::start(TestImage::new(vec![good, bad]).serve());
    let mut bench = Bench::new();
    bench.options.parallel_layers = 1;
    bench.pull(&server.name()).unwrap_err();
    bench.assert_tidy();
    assert!(bench.store.list().unwrap().is_empty());
    let pruned = bench.store.prune(Default::default()).unwrap();
    assert_eq!(pruned.removed.len(), 1);
    bench.assert_untouched();
}

#[test]
fn i06_document_served_as_another_type_is_refused() {
    let image = TestImage::small();
    for declared in [OCI_INDEX, DOCKER_LIST] {
        let mut content = image.content("latest");
        for (media_type, _) in content.values_mut() {
            *media_type = declared.into();
        }
        let error = fail(&Server::start(serve(content)));
        assert!(matches!(error, PullError::Manifest { .. }), "{error:?}");
    }
}

#[test]
fn i06_manifest_that_is_an_index_too_is_refused() {
    let mut image = TestImage::small();
    image.manifest["manifests"] = json!([]);
    let error = chain(&fail(&Server::start(image.serve())));
    assert!(error.contains("a manifest and an index at once"), "{error}");
}

#[test]
fn i06_index_entry_that_is_an_index_is_refused() {
    let inner = TestImage::small().with_index().index.unwrap().to_string();
    let digest = Digest::sha256(inner.as_bytes());
    let outer = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_INDEX, "digest": digest, "size": inner.len(), "platform": {"os": "linux", "architecture": "amd64"}},
    ]});
    let content = [
        ("manifests/latest".to_owned(), (OCI_INDEX.to_owned(), outer.to_string().into_bytes())),
        (format!("manifests/{digest}"), (OCI_INDEX.to_owned(), inner.into_bytes())),
    ];
    let error = fail(&Server::start(serve(content.into())));
    assert!(matches!(error, PullError::NestedIndex(_)), "{error:?}");
}

#[test]
fn i07_bad_digests_are_refused_before_anything_is_fetched() {
    for bad in ["sha256:../../../etc/passwd", "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709", "sha256:ABC"] {
        let mut image = TestImage::small();
        image.manifest["layers"][0]["digest"] = json!(bad);
        let server = Server::start(image.serve());
        let error = fail(&server);
        assert!(matches!(error, PullError::Manifest { .. }), "{error:?}");
        assert!(server.requests().iter().all(|request| !request.is_blob()));
    }
}

#[test]
fn manifest_with_another_digest_than_asked_for_is_refused() {
    let image = TestImage::small();
    let mut content = image.content("latest");
    let other = Digest::sha256(b"other");
    let manifest = content["manifests/latest"].clone();
    content.insert(format!("manifests/{other}"), manifest);
    let server = Server::start(serve(content));
    let bench = Bench::new();
    let error = bench.pull(&format!("{}/demo/app@{other}", server.host())).unwrap_err();
    assert!(matches!(error, PullError::Registry(RegistryError::DigestMismatch { .. })), "{error:?}");
    bench.assert_untouched();
}

#[test]
fn manifest_that_lies_about_its_configuration_is_refused() {
    let mut image = TestImage::small();
    let size = image.config_bytes().len();
    image.manifest["config"]["size"] = json!(size + 1);
    let error = fail(&Server::start(image.serve()));
    assert!(matches!(error, PullError::Registry(RegistryError::Size { .. })), "{error:?}");
}

#[test]
fn manifest_with_other_layers_than_its_configuration_is_refused() {
    let mut image = TestImage::small();
    let twice = image.manifest["layers"][0].clone();
    image.manifest["layers"].as_array_mut().unwrap().push(twice);
    let error = fail(&Server::start(image.serve()));
    assert!(matches!(error, PullError::LayerCount { layers: 2, diff_ids: 1 }), "{error:?}");
}

#[test]
fn i15_huge_manifest_is_not_read() {
    let big = MAX_DOCUMENT_BYTES as usize + 1;
    for reply in [Reply::ok(vec![b' '; big]), Reply::endless(&vec![b' '; 100_000]), Reply::stall(b"", big)] {
        let error = fail(&Server::start(move |_| reply.clone()));
        assert!(matches!(error, PullError::Registry(RegistryError::TooLarge { .. })), "{error:?}");
    }
}

#[test]
fn i15_floods_instead_of_a_response_are_bounded() {
    let header = b"X-Flood: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(2000);
    let head = [b"HTTP/1.1 200 OK\r\n".as_slice(), &header, b"Content-Length: 2\r\n\r\n{}"].concat();
    let interim = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100);
    for reply in [Reply::raw(&head), Reply::raw_endless(b"HTTP/1.1 200 OK "), Reply::raw_endless(&interim)] {
        let server = Server::start(move |_| reply.clone());
        let mut bench = Bench::new();
        bench.options.registry.network.connect_timeout = Duration::from_millis(200);
        let begun = Instant::now();
        let error = bench.pull(&server.name()).unwrap_err();
        assert!(matches!(error, PullError::Registry(_)), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(10));
        bench.assert_untouched();
    }
}

#[test]
fn i15_silence_ends_the_pull() {
    let silent_layer = with_layer_reply(|bytes| Reply::stall(&bytes[..1000], bytes.len()));
    let silent_manifest = Server::start(|_| Reply::stall(b"{", 100));
    let mut silent_head = Bench::new();
    silent_head.options.registry.network.connect_timeout = Duration::from_millis(100);

    assert!(matches!(
        fail(&silent_layer),
        PullError::Registry(RegistryError::Timeout { what: "send data", .. })
    ));
    assert!(matches!(fail(&silent_manifest), PullError::Registry(RegistryError::Timeout { .. })));
    let server = Server::start(|_| Reply::raw(b"HTTP/1.1 200 "));
    assert!(matches!(
        silent_head.pull(&server.name()),
        Err(PullError::Registry(RegistryError::Timeout { what: "answer", .. }))
    ));
}

#[test]
fn i15_redirects_in_a_circle_end() {
    let server = Server::start(|request| Reply::redirect(&request.path));
    let error = fail(&server);
    assert!(matches!(error, PullError::Registry(RegistryError::Redirect { .. })), "{error:?}");
    assert_eq!(server.requests().len(), 6);
}

#[test]
fn image_for_other_machines_is_refused_with_what_there_is() {
    let image = TestImage::small().with_index();
    let server = Server::start(image.serve());
    let mut bench = Bench::new();
    bench.options.platform.architecture = "riscv64".into();
    let error = chain(&bench.pull(&server.name()).unwrap_err());
    assert!(error.contains("no variant for linux/riscv64; it has: linux/amd64, linux/arm64"), "{error}");
}
