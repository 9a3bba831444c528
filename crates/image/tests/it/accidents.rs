//! Full disks and sudden deaths.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nacre_image::{PruneOptions, Store, progress, pull};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::support::image::{noise, tar_of};
use crate::support::{Bench, Reply, Server, TestImage, TestLayer, chain, options};

const CHILD_IMAGE: &str = "NACRE_TEST_CHILD_IMAGE";
const CHILD_STORE: &str = "NACRE_TEST_CHILD_STORE";

fn big() -> TestImage {
    TestImage::new(vec![
        TestLayer::gzip(&tar_of(&[("small", b"s")])),
        TestLayer::plain(&tar_of(&[("big", &noise(4 << 20))])),
    ])
}

#[test]
fn full_disk_is_named_and_the_next_pull_works() {
    let bench = Bench::new();
    let small_disk = bench.dir.path().join("disk");
    fs::create_dir(&small_disk).unwrap();
    // The thread has a mount namespace of its own, so nothing has to be undone.
    let private = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| {
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        })
        .and_then(|()| {
            mount(Some("none"), &small_disk, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=700"))
        });
    match private {
        Err(Errno::EPERM) => return eprintln!("SKIPPED: a small disk can only be mounted by root"),
        other => other.unwrap(),
    }
    let store = Store::open(small_disk.join("store")).unwrap();
    let server = Server::start(big().serve());
    let pull =
        |server: &Server| pull(&store, &server.name().parse().unwrap(), &bench.options, &progress::silent);

    let error = chain(&pull(&server).unwrap_err());

    assert!(
        error.contains("disk full: no space left for ") && error.contains("disk/store/layers"),
        "{error}"
    );
    assert!(fs::read_dir(store.root().join("tmp")).unwrap().next().is_none());
    assert!(store.list().unwrap().is_empty());
    pull(&Server::start(TestImage::small().serve())).unwrap();
}

#[test]
fn kill_9_leaves_nothing_that_the_next_pull_does_not_sweep() {
    if let (Ok(image), Ok(root)) = (std::env::var(CHILD_IMAGE), std::env::var(CHILD_STORE)) {
        let store = Store::open(&root).unwrap();
        let mut options = options(Path::new(&root));
        options.registry.network.idle_timeout = std::time::Duration::from_secs(60);
        let _ = pull(&store, &image.parse().unwrap(), &options, &progress::silent);
        return;
    }
    let image = big();
    let bench = Bench::new();
    let (well, hex) = (image.serve(), image.layers[1].digest().hex().to_owned());
    let bytes = image.layers[1].bytes.clone();
    let stalling = Server::start(move |request| match request.path.ends_with(&hex) {
        true => Reply::stall(&bytes[..1 << 20], bytes.len()),
        false => well(request),
    });
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "accidents::kill_9_leaves_nothing_that_the_next_pull_does_not_sweep"])
        .env(CHILD_IMAGE, stalling.name())
        .env(CHILD_STORE, bench.store.root())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let count = |dir: &str| fs::read_dir(bench.store.root().join(dir)).unwrap().count();
    // One layer is stored, the other hangs with its temporary file open.
    while count("layers/sha256") < 2 || count("tmp") != 1 {
        assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
        thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((count("tmp"), count("pulls"), count("images")), (1, 1, 0));

    let good = Server::start(image.serve());
    bench.pull(&good.name()).unwrap();

    bench.assert_tidy();
    let fetched: Vec<_> = good.requests().into_iter().filter(|request| request.is_blob()).collect();
    assert_eq!(fetched.len(), 2, "the configuration and the one layer that was missing");
}

#[test]
fn prune_leaves_a_pull_under_way_alone() {
    let image = big();
    let bench = Bench::new();
    let (well, hex) = (image.serve(), image.layers[1].digest().hex().to_owned());
    let (reached, at_layer) = std::sync::mpsc::sync_channel(0);
    let (go_on, gate) = std::sync::mpsc::sync_channel::<()>(0);
    let gate = std::sync::Mutex::new(gate);
    let server = Server::start(move |request| {
        if request.path.ends_with(&hex) {
            reached.send(()).unwrap();
            gate.lock().unwrap().recv().unwrap();
        }
        well(request)
    });
    let mut patient = options(bench.dir.path());
    patient.registry.network.idle_timeout = std::time::Duration::from_secs(60);
    patient.parallel_layers = 1;
    let (store, name) = (&bench.store, server.name().parse().unwrap());
    thread::scope(|scope| {
        let pulling = scope.spawn(|| pull(store, &name, &patient, &progress::silent));
        // The first layer is stored, and nothing but the pull counts on it.
        at_layer.recv().unwrap();
        assert!(store.prune(PruneOptions { all: true }).unwrap().removed.is_empty());
        go_on.send(()).unwrap();
        pulling.join().unwrap().unwrap();
    });
}
