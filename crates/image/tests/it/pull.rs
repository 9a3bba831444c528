//! Pulling from a registry that behaves, or at worst breaks down.

use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::image::{gzip, noise, serve, tar_of};
use crate::support::{Bench, Reply, Server, TestImage, TestLayer};
use nacre_image::{Digest, Event, PruneOptions, StoreError, pull};

fn three_layers() -> TestImage {
    TestImage::new(vec![
        TestLayer::gzip(&tar_of(&[("bin/sh", b"#!")])),
        TestLayer::zstd(&tar_of(&[("etc/passwd", b"root:x:0:0::/:/bin/sh\n")])),
        TestLayer::plain(&tar_of(&[("data", &noise(300_000))])),
    ])
}

#[test]
fn image_with_every_compression_is_stored_and_found() {
    let image = three_layers().with_index();
    let server = Server::start(image.serve());
    let bench = Bench::new();

    let pulled = bench.pull(&server.name()).unwrap();

    assert_eq!(pulled.id, image.id());
    assert_eq!(pulled.config.config.cmd, ["sh"]);
    assert_eq!(pulled.manifest_digest, Some(Digest::sha256(&image.manifest_bytes())));
    let diff_ids: Vec<_> = pulled.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    assert_eq!(diff_ids, image.layers.iter().map(|layer| layer.diff_id.clone()).collect::<Vec<_>>());
    for layer in &pulled.layers {
        assert_eq!(std::fs::metadata(&layer.path).unwrap().len(), layer.length_bytes);
        assert_eq!(layer.length_bytes % 4096, 0);
    }
    assert_eq!(bench.store.find(&server.name()).unwrap().as_ref(), Some(&pulled));
    assert_eq!(bench.store.find(image.id().short()).unwrap().as_ref(), Some(&pulled));
    bench.store.verify(&pulled).unwrap();
    bench.assert_tidy();
}

#[test]
fn docker_schema_2_image_is_stored() {
    let image = TestImage::small().into_docker();
    let server = Server::start(image.serve());
    assert_eq!(Bench::new().pull(&server.name()).unwrap().id, image.id());
}

#[test]
fn gzip_of_several_members_is_one_layer() {
    let tar = tar_of(&[("a", &noise(5000)), ("b", b"b")]);
    let (first, second) = tar.split_at(1500);
    let bytes = [gzip(first), gzip(second)].concat();
    let layer = TestLayer::new(&tar, bytes, "application/vnd.oci.image.layer.v1.tar+gzip");
    let server = Server::start(TestImage::new(vec![layer]).serve());
    Bench::new().pull(&server.name()).unwrap();
}

#[test]
fn second_pull_of_a_tag_asks_once_and_moves_nothing() {
    let server = Server::start(three_layers().with_index().serve());
    let bench = Bench::new();
    let first = bench.pull(&server.name()).unwrap();
    server.forget_requests();

    assert_eq!(bench.pull(&server.name()).unwrap(), first);

    let asked: Vec<_> = server.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(asked, ["HEAD"]);
}

#[test]
fn pull_by_a_digest_that_is_here_asks_nobody() {
    let image = TestImage::small();
    let server = Server::start(image.serve());
    let bench = Bench::new();
    let first = bench.pull(&server.name()).unwrap();
    let by_digest = format!("{}/demo/app@{}", server.host(), Digest::sha256(&image.manifest_bytes()));
    server.forget_requests();

    assert_eq!(bench.pull(&by_digest).unwrap(), first);

    assert!(server.requests().is_empty());
}

#[test]
fn layers_are_shared_between_images() {
    let shared = TestLayer::gzip(&tar_of(&[("base", &noise(10_000))]));
    let first = TestImage::new(vec![shared.clone(), TestLayer::gzip(&tar_of(&[("one", b"1")]))]);
    let second =
        TestImage::new(vec![shared.clone(), TestLayer::gzip(&tar_of(&[("two", b"2")])), shared.clone()]);
    let mut content = first.content("latest");
    content.extend(second.content("second"));
    let server = Server::start(serve(content));
    let bench = Bench::new();

    bench.pull(&server.name()).unwrap();
    let pulled = bench.pull(&format!("{}/demo/app:second", server.host())).unwrap();

    let fetched =
        server.requests().iter().filter(|request| request.path.ends_with(shared.digest().hex())).count();
    assert_eq!(fetched, 1);
    assert_eq!(pulled.layers[0], pulled.layers[2]);
}

#[test]
fn broken_connection_is_taken_up_where_it_broke() {
    let layer = TestLayer::plain(&tar_of(&[("big", &noise(600_000))]));
    let bytes = layer.bytes.clone();
    let image = TestImage::new(vec![layer.clone()]);
    let (well, tries) = (image.serve(), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        let cut = |from: usize, to: usize| Reply::cut(&bytes[from..to], bytes.len() - from);
        let is_layer = request.path.ends_with(layer.digest().hex());
        match (is_layer, if is_layer { tries.fetch_add(1, Ordering::SeqCst) } else { 0 }) {
            (true, 0) => cut(0, 100_000),
            (true, 1) => Reply::status(503),
            _ => well(request),
        }
    });
    let bench = Bench::new();
    let retries = Mutex::new(0);
    let count =
        |event: Event<'_>| *retries.lock().unwrap() += i32::from(matches!(event, Event::LayerRetry { .. }));

    pull(&bench.store, &server.name().parse().unwrap(), &bench.options, &count).unwrap();

    let starts: Vec<_> =
        server.requests().iter().filter(|r| r.is_blob()).filter_map(|r| r.range_start()).collect();
    assert_eq!(starts, [100_000, 100_000]);
    assert_eq!(*retries.lock().unwrap(), 1);
}

#[test]
fn registry_that_ignores_ranges_is_read_again_from_the_start() {
    let layer = TestLayer::plain(&tar_of(&[("big", &noise(600_000))]));
    let (bytes, hex) = (layer.bytes.clone(), layer.digest().hex().to_owned());
    let well = TestImage::new(vec![layer]).serve();
    let server = Server::start(move |request| match request.range_start() {
        _ if !request.path.ends_with(&hex) => well(request),
        None => Reply::cut(&bytes[..100_000], bytes.len()),
        Some(_) => Reply::ok(bytes.clone()),
    });
    Bench::new().pull(&server.name()).unwrap();
}

#[test]
fn connection_that_breaks_every_time_ends_the_pull() {
    let image = TestImage::small();
    let (well, bytes) = (image.serve(), image.layers[0].bytes.clone());
    let hex = image.layers[0].digest().hex().to_owned();
    let server = Server::start(move |request| match request.path.ends_with(&hex) {
        true => Reply::cut(&[], bytes.len()),
        false => well(request),
    });
    let bench = Bench::new();

    let error = crate::support::chain(&bench.pull(&server.name()).unwrap_err());

    assert!(error.starts_with(&format!("connection to registry {} broke", server.host())), "{error}");
    assert_eq!(server.requests().iter().filter(|request| request.is_blob()).count(), 1 + 3);
    bench.assert_untouched();
}

#[test]
fn moved_tag_leaves_the_old_image_to_prune() {
    let (old, new) = (TestImage::small(), TestImage::new(vec![TestLayer::gzip(&tar_of(&[("new", b"n")]))]));
    let current = std::sync::Arc::new(Mutex::new(old.content("latest")));
    let content = current.clone();
    let server = Server::start(move |request| serve(content.lock().unwrap().clone())(request));
    let bench = Bench::new();
    bench.pull(&server.name()).unwrap();
    *current.lock().unwrap() = new.content("latest");

    assert_eq!(bench.pull(&server.name()).unwrap().id, new.id());
    assert_eq!(bench.store.list().unwrap().len(), 2);
    let pruned = bench.store.prune(PruneOptions::default()).unwrap();

    assert!(pruned.freed_bytes > 0);
    let left: Vec<_> = bench.store.list().unwrap().into_iter().map(|image| image.id).collect();
    assert_eq!(left, [new.id()]);
    assert!(
        !bench
            .store
            .root()
            .join("layers/sha256")
            .join(format!("{}.erofs", old.layers[0].diff_id.hex()))
            .exists()
    );
    bench.store.image(&new.id()).unwrap().unwrap();
}

#[test]
fn damaged_layer_is_noticed_and_pulled_again() {
    let server = Server::start(TestImage::small().serve());
    let bench = Bench::new();
    let image = bench.pull(&server.name()).unwrap();
    std::fs::File::options().write(true).open(&image.layers[0].path).unwrap().set_len(512).unwrap();

    assert!(matches!(bench.store.find(&server.name()), Err(StoreError::LayerMissing { .. })));
    assert_eq!(bench.pull(&server.name()).unwrap(), image);
    bench.store.verify(&image).unwrap();
}

#[test]
fn verification_notices_a_flipped_bit() {
    use std::os::unix::fs::FileExt;
    let server = Server::start(TestImage::small().serve());
    let bench = Bench::new();
    let image = bench.pull(&server.name()).unwrap();
    let file = std::fs::File::options().write(true).open(&image.layers[0].path).unwrap();
    file.write_all_at(b"\x5a", 1500).unwrap();

    assert!(matches!(bench.store.verify(&image), Err(StoreError::LayerMissing { .. })));
}

#[test]
fn h08_nothing_in_the_store_is_open_to_others() {
    let server = Server::start(three_layers().serve());
    let bench = Bench::new();
    bench.pull(&server.name()).unwrap();
    let mut dirs = vec![bench.store.root().to_owned()];
    while let Some(dir) = dirs.pop() {
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700, "{dir:?}");
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let data = std::fs::symlink_metadata(&path).unwrap();
            if data.is_dir() {
                dirs.push(path);
            } else {
                assert_eq!(data.mode() & 0o7777, 0o600, "{path:?}");
            }
        }
    }
}

#[test]
fn i11_pulls_of_images_that_share_layers_do_not_disturb_each_other() {
    let shared = TestLayer::gzip(&tar_of(&[("base", &noise(50_000))]));
    let mut content = std::collections::BTreeMap::new();
    for number in 0..4u8 {
        let own = TestLayer::gzip(&tar_of(&[("own", &[number; 100])]));
        content.extend(TestImage::new(vec![shared.clone(), own]).content(&format!("v{number}")));
    }
    let server = Server::start(serve(content));
    let bench = Bench::new();

    for _ in 0..3 {
        std::thread::scope(|scope| {
            for number in 0..4 {
                let (bench, host) = (&bench, server.host());
                scope.spawn(move || bench.pull(&format!("{host}/demo/app:v{number}")).unwrap());
            }
            scope.spawn(|| bench.store.prune(PruneOptions::default()).unwrap());
        });
        for image in bench.store.list().unwrap() {
            bench.store.verify(&bench.store.image(&image.id).unwrap().unwrap()).unwrap();
        }
        bench.store.prune(PruneOptions { all: true }).unwrap();
        bench.assert_untouched();
    }
}

#[test]
fn directories_that_a_layer_only_passes_through_are_corrected_on_top() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o1777);
    builder.append_data(&mut header, "tmp/", &[][..]).unwrap();
    let base = TestLayer::gzip(&builder.into_inner().unwrap());
    let image = TestImage::new(vec![base, TestLayer::gzip(&tar_of(&[("tmp/file", b"f")]))]);
    let server = Server::start(image.serve());
    let bench = Bench::new();

    let pulled = bench.pull(&server.name()).unwrap();

    assert_eq!(pulled.layers.len(), 3);
    let blob = std::fs::read(&pulled.layers[2].path).unwrap();
    let fs = erofs_rs::EroFS::new(erofs_rs::backend::SliceImage::new(&blob)).unwrap();
    let entries: Vec<_> = fs.walk_dir("/").unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].dir_entry.file_name(), b"tmp");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&entries[0].inode.permissions()) & 0o7777, 0o1777);

    bench.store.prune(PruneOptions::default()).unwrap();
    bench.store.verify(&pulled).unwrap();
    bench.store.remove(&server.name(), false).unwrap();
    bench.assert_untouched();
}
