//! Deletions in a layer, in the form that overlayfs understands (OCI image specification, layer changesets).

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use crate::oracles::{Blob, with_overlay};
use crate::tarball::Tarball;
use crate::tree::{S_IFCHR, S_IFDIR, S_IFMT, S_IFREG, Tree, assert_same};

const OPAQUE: &[u8] = b"trusted.overlay.opaque";

fn is_whiteout(tree: &Tree, name: &str) -> bool {
    tree.get(name.as_bytes()).is_some_and(|node| node.mode & S_IFMT == S_IFCHR && node.device == (0, 0))
}

fn is_opaque(tree: &Tree, name: &str) -> bool {
    tree[name.as_bytes()].xattrs.get(OPAQUE).is_some_and(|value| value == b"y")
}

#[test]
fn a_whiteout_becomes_a_device_and_its_marker_is_gone() {
    let tar = Tarball::new().dir("etc").file("etc/.wh.passwd", b"").file(".wh.var", b"").finish();
    let blob = Blob::of(&tar);
    let tree = blob.read_by_all();
    assert!(is_whiteout(&tree, "etc/passwd"));
    assert!(is_whiteout(&tree, "var"));
    assert!(!tree.contains_key(b"etc/.wh.passwd".as_slice()));
    assert_eq!(blob.summary.whiteouts, 2);
}

#[test]
fn an_opaque_marker_becomes_an_attribute_and_siblings_stay() {
    let tar = Tarball::new()
        .dir("a")
        .file("a/before", b"")
        .file("a/.wh..wh..opq", b"")
        .file("a/after", b"")
        .finish();
    let tree = Blob::of(&tar).read_by_all();
    assert!(is_opaque(&tree, "a"));
    assert!(tree.contains_key(b"a/before".as_slice()) && tree.contains_key(b"a/after".as_slice()));
}

#[test]
fn an_opaque_marker_does_not_depend_on_the_directory_having_an_entry() {
    let tree = Blob::of(&Tarball::new().file("x/y/.wh..wh..opq", b"").finish()).read_by_all();
    assert!(is_opaque(&tree, "x/y"));
    assert!(!is_opaque(&tree, "x"));
}

#[test]
fn i16_a_whiteout_means_the_same_wherever_it_stands_in_its_layer() {
    let marker = |tar: Tarball| tar.file("d/.wh.file", b"").file("d/.wh.dir", b"").file("d/.wh.gone", b"");
    let content = |tar: Tarball| tar.file("d/file", b"new").dir("d/dir").file("d/dir/x", b"");
    let first = Blob::of(&content(marker(Tarball::new().dir("d"))).finish()).read_by_all();
    let last = Blob::of(&marker(content(Tarball::new().dir("d"))).finish()).read_by_all();
    assert_eq!(first, last);
    assert_eq!(first[b"d/file".as_slice()].mode & S_IFMT, S_IFREG);
    assert!(is_opaque(&first, "d/dir"));
    assert!(is_whiteout(&first, "d/gone"));
}

#[test]
fn i16_whiteout_of_a_directory_then_something_beneath_hides_the_lower_one() {
    for tar in [
        Tarball::new().file(".wh.d", b"").file("d/x", b"").finish(),
        Tarball::new().file("d/x", b"").file(".wh.d", b"").finish(),
    ] {
        let tree = Blob::of(&tar).read_by_all();
        assert!(is_opaque(&tree, "d"));
        assert!(tree.contains_key(b"d/x".as_slice()));
    }
}

#[test]
fn a_directory_that_replaces_a_file_hides_the_lower_one() {
    let tree = Blob::of(&Tarball::new().file("a", b"").dir("a").finish()).read_by_all();
    assert_eq!(tree[b"a".as_slice()].mode & S_IFMT, S_IFDIR);
    assert!(is_opaque(&tree, "a"));
}

#[test]
fn whiteouts_beneath_an_opaque_directory_are_left_out() {
    // overlayfs would list them by name: nothing is merged there, so nothing looks at them.
    let tar = Tarball::new()
        .file("a/.wh..wh..opq", b"")
        .file("a/.wh.x", b"")
        .file("a/b/.wh.y", b"")
        .file("c/.wh.z", b"")
        .finish();
    let tree = Blob::of(&tar).read_by_all();
    assert!(!tree.contains_key(b"a/x".as_slice()) && !tree.contains_key(b"a/b/y".as_slice()));
    assert!(is_whiteout(&tree, "c/z"));
}

#[test]
fn an_opaque_root_is_reported() {
    let blob = Blob::of(&Tarball::new().file(".wh..wh..opq", b"").file("x", b"").finish());
    assert!(blob.summary.root_opaque);
    assert!(!Blob::of(&Tarball::new().file("x", b"").finish()).summary.root_opaque);
}

#[test]
fn book_keeping_of_aufs_is_left_out() {
    let tar = Tarball::new()
        .file(".wh..wh.aufs", b"")
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", b"data")
        .file("kept", b"")
        .finish();
    assert_eq!(Blob::of(&tar).read_by_all().len(), 2);
}

#[test]
fn i16_a_layer_cannot_speak_to_overlayfs_by_attributes() {
    let tar = Tarball::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .dir("d")
        .pax(&[("SCHILY.xattr.trusted.overlay.whiteout", b"y")])
        .file("f", b"")
        .finish();
    let tree = Blob::of(&tar).read_by_all();
    let own = |name: &str| {
        let names = tree[name.as_bytes()].xattrs.keys();
        names.filter(|name| !name.starts_with(b"trusted.overlay.overlay.")).count()
    };
    assert_eq!((own("d"), own("f")), (0, 0));
    assert_eq!(tree[b"d".as_slice()].xattrs[b"trusted.overlay.overlay.redirect".as_slice()], b"/etc");
}

#[test]
fn overlayfs_shows_what_the_upper_layer_says() {
    let lower = Tarball::new()
        .file("deleted", b"")
        .file("kept", b"lower")
        .file("replaced", b"lower")
        .file("d/lower", b"")
        .file("d/sub/lower", b"")
        .file("emptied/lower", b"")
        .file("again/lower", b"")
        .file("file-to-dir", b"")
        .file("dir-to-file/x", b"")
        .finish();
    let upper = Tarball::new()
        .file(".wh.deleted", b"")
        .file("replaced", b"upper")
        .file("d/upper", b"")
        .file("d/.wh.sub", b"")
        .file("emptied/.wh..wh..opq", b"")
        .file("again/upper", b"")
        .file(".wh.again", b"")
        .dir("file-to-dir")
        .file("file-to-dir/upper", b"")
        .file("dir-to-file", b"")
        .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/kept")])
        .dir("escaped")
        .finish();
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.join(" ")
    };
    with_overlay(&[&Blob::of(&upper), &Blob::of(&lower)], |root| {
        assert_eq!(names(root), "again d dir-to-file emptied escaped file-to-dir kept replaced");
        assert_eq!(names(&root.join("d")), "lower upper");
        assert_eq!(names(&root.join("emptied")), "");
        assert_eq!(names(&root.join("again")), "upper");
        assert_eq!(names(&root.join("file-to-dir")), "upper");
        assert_eq!(fs::read(root.join("kept")).unwrap(), b"lower");
        assert_eq!(fs::read(root.join("replaced")).unwrap(), b"upper");
        assert!(root.join("dir-to-file").is_file());
        assert_eq!(names(&root.join("escaped")), "");
    });
}

/// A name that is always a directory (`d`), always a file (`f`), or never there (`n`).
fn path() -> impl Strategy<Value = String> {
    ("(d[12]/){0,2}", "[dfn][12]").prop_map(|(parents, name)| parents + &name)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn i16_the_order_of_whiteouts_among_entries_does_not_matter(
        entries in prop::collection::vec(path(), 0..12),
        whiteouts in prop::collection::vec((path(), any::<bool>(), any::<prop::sample::Index>()), 0..8),
    ) {
        let add = |tar: Tarball, path: &String| {
            let name = path.rsplit('/').next().unwrap();
            if name.starts_with('d') { tar.dir(path) } else { tar.file(path, b"data") }
        };
        let add_whiteout = |tar: Tarball, path: &String, opaque: bool| {
            let (parent, name) = path.rsplit_once('/').map_or(("", path.as_str()), |(parent, name)| (parent, name));
            let marker = if opaque && !parent.is_empty() { ".wh..wh..opq".into() } else { format!(".wh.{name}") };
            tar.file(format!("{parent}/{marker}"), b"")
        };
        let last = entries.iter().fold(Tarball::new(), add);
        let last = whiteouts.iter().fold(last, |tar, (path, opaque, _)| add_whiteout(tar, path, *opaque));
        let mut among = Tarball::new();
        for (n, entry) in entries.iter().enumerate() {
            for (path, opaque, at) in &whiteouts {
                if at.index(entries.len()) == n {
                    among = add_whiteout(among, path, *opaque);
                }
            }
            among = add(among, entry);
        }
        if entries.is_empty() {
            among = whiteouts.iter().fold(among, |tar, (path, opaque, _)| add_whiteout(tar, path, *opaque));
        }
        let (last, among) = (Blob::of(&last.finish()), Blob::of(&among.finish()));
        assert_same("whiteouts last", &last.tree(), "whiteouts among", &among.tree());
    }
}
