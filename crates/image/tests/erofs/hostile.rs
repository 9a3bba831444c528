//! Layers that want something: each is refused by name, and none makes the converter panic or loop.

use std::error::Error;
use std::io;

use nacre_image::layer::{EntryError, LayerError, LayerLimits};
use proptest::prelude::*;

use crate::oracles::Blob;
use crate::tarball::{Header, Tarball, seal};

fn refusal(tar: Tarball) -> LayerError {
    refusal_with(&tar.finish(), &LayerLimits::default())
}

fn refusal_with(tar: &[u8], limits: &LayerLimits) -> LayerError {
    Blob::with_limits(tar, limits).err().expect("the layer is refused")
}

/// The entry at fault, and why.
fn entry_error(tar: Tarball) -> (String, EntryError) {
    match refusal(tar) {
        LayerError::Entry { entry, source } => (entry.to_string(), source),
        other => panic!("not about an entry: {other:?}"),
    }
}

#[test]
fn i01_dot_dot_in_a_name_is_refused_and_named() {
    for name in ["../evil", "a/../../evil", "/../evil", "a/.."] {
        let (entry, why) = entry_error(Tarball::new().file(name, b"x"));
        assert_eq!(entry, name);
        assert!(matches!(why, EntryError::DotDot));
    }
}

#[test]
fn i01_absolute_names_are_taken_beneath_the_root() {
    let tree = Blob::of(&Tarball::new().file("/etc/passwd", b"x").finish()).read_by_all();
    assert!(tree.contains_key(b"etc/passwd".as_slice()));
}

#[test]
fn i01_nothing_goes_through_a_symbolic_link() {
    let chains: [&[(&str, &str)]; 3] = [&[("l", "/tmp")], &[("l", "..")], &[("k", "/"), ("l", "k/tmp")]];
    for links in chains {
        let start = || links.iter().fold(Tarball::new(), |tar, (name, target)| tar.symlink(name, target));
        let attempts = [
            start().file("l/x", b""),
            start().dir("l/x"),
            start().symlink("l/x", "y"),
            start().fifo("l/x"),
            start().device(b'3', "l/x", 1, 3),
            start().file("f", b"").hard_link("l/x", "f"),
            start().file("l/.wh.x", b""),
            start().file("l/.wh..wh..opq", b""),
        ];
        for tar in attempts {
            let (entry, why) = entry_error(tar);
            assert!(entry.starts_with("l/"), "{entry}");
            assert!(matches!(&why, EntryError::ThroughNonDirectory(through) if through.to_string() == "l"));
        }
    }
}

#[test]
fn i01_hard_links_reach_nothing_but_earlier_files_of_the_layer() {
    let base = || Tarball::new().file("f", b"x").symlink("s", "f").symlink("d", "/etc").dir("dir");
    let missing = |tar| matches!(entry_error(tar).1, EntryError::LinkTargetMissing(_));
    let no_file = |tar| matches!(entry_error(tar).1, EntryError::LinkTargetNotFile(_));
    assert!(missing(base().hard_link("h", "absent")));
    assert!(missing(base().hard_link("h", "/etc/passwd")));
    assert!(missing(Tarball::new().hard_link("h", "later").file("later", b"")));
    assert!(no_file(base().hard_link("h", "s")));
    assert!(no_file(base().hard_link("h", "dir")));
    assert!(no_file(base().hard_link("h", "/")));
    assert!(no_file(base().file(".wh.w", b"").hard_link("h", "w")));
    assert!(matches!(entry_error(base().hard_link("h", "../f")).1, EntryError::LinkTargetOutside(_)));
    assert!(matches!(entry_error(base().hard_link("h", "d/passwd")).1, EntryError::ThroughNonDirectory(_)));
    assert!(matches!(entry_error(base().hard_link("s", "f")).1, EntryError::LinkOverSymlink));
}

#[test]
fn i02_the_root_stays_a_directory() {
    for name in [".", "/", "./", "./.", "", "//"] {
        for tar in [
            Tarball::new().file(name, b"x"),
            Tarball::new().symlink(name, "/etc"),
            Tarball::new().file("f", b"").hard_link(name, "f"),
            Tarball::new().fifo(name),
        ] {
            assert!(matches!(entry_error(tar).1, EntryError::RootNotDirectory), "{name:?}");
        }
    }
}

#[test]
fn i16_whiteouts_out_of_bounds_are_refused() {
    for name in [".wh...", ".wh..", ".wh.", "a/.wh...", ".wh.a/b"] {
        assert!(matches!(entry_error(Tarball::new().file(name, b"")).1, EntryError::BadWhiteout), "{name:?}");
    }
    assert!(matches!(entry_error(Tarball::new().file("../.wh.x", b"")).1, EntryError::DotDot));
}

#[test]
fn i16_a_device_that_is_a_whiteout_is_refused() {
    let (entry, why) = entry_error(Tarball::new().device(b'3', "gone", 0, 0));
    assert_eq!(entry, "gone");
    assert!(matches!(why, EntryError::ReservedDevice));
}

#[test]
fn device_numbers_out_of_range_are_refused() {
    assert!(matches!(entry_error(Tarball::new().device(b'3', "d", 4096, 0)).1, EntryError::BadDevice { .. }));
    assert!(matches!(
        entry_error(Tarball::new().device(b'4', "d", 0, 1 << 20)).1,
        EntryError::BadDevice { .. }
    ));
}

#[test]
fn symbolic_links_to_nothing_or_too_far_are_refused() {
    assert!(matches!(
        entry_error(Tarball::new().symlink("s", "")).1,
        EntryError::BadSymlinkTarget { len: 0 }
    ));
    let long = [b'x'; 4096];
    let tar = Tarball::new().pax(&[("linkpath", &long)]).symlink("s", "x");
    assert!(matches!(entry_error(tar).1, EntryError::BadSymlinkTarget { len: 4096 }));
}

#[test]
fn unknown_types_and_owners_are_refused() {
    assert!(matches!(
        entry_error(Tarball::new().header(&Header::new(b'M', "m"))).1,
        EntryError::UnknownType('M')
    ));
    let tar = Tarball::new().header(&Header { uid: 4_294_967_295, ..Header::new(b'0', "f") });
    assert!(matches!(entry_error(tar).1, EntryError::BadOwner { id: 4_294_967_295 }));
}

#[test]
fn the_message_shows_names_escaped_and_cut() {
    let name = format!("../\x1b[2J{}", "x".repeat(3000));
    let error = refusal(Tarball::new().pax(&[("path", name.as_bytes())]).file("f", b""));
    let message = error.to_string();
    assert!(message.starts_with("layer entry \"../\\u{1b}[2Jxxx"), "{message}");
    assert!(message.len() < 250);
    assert_eq!(error.source().unwrap().to_string(), "its path has a \"..\" component");
}

#[test]
fn names_longer_than_linux_allows_are_refused() {
    let component = [b'c'; 256];
    let path = "d/".repeat(2100);
    for name in [&component[..], path.as_bytes()] {
        let tar = Tarball::new().pax(&[("path", name)]).file("f", b"");
        assert!(matches!(entry_error(tar).1, EntryError::PathTooLong));
    }
}

#[test]
fn a_bomb_is_refused_before_it_goes_off() {
    let limits = LayerLimits {
        stream_bytes: 1 << 20,
        entries: 100,
        blob_bytes: 1 << 20,
        file_bytes: 1 << 30,
        metadata_bytes: 1 << 20,
        xattr_bytes: 1000,
        header_bytes: 5000,
        ..LayerLimits::default()
    };
    let refused = |tar: &[u8]| refusal_with(tar, &limits);

    let zeros = vec![0; 2 << 20];
    let stream = Tarball::new().file("a", b"").unfinished();
    assert!(matches!(refused(&[stream, vec![0; 1024], zeros].concat()), LayerError::StreamTooLong { .. }));

    let huge = Tarball::new().header(&Header { size: 1 << 40, ..Header::new(b'0', "huge") }).finish();
    assert!(matches!(refused(&huge), LayerError::Entry { source: EntryError::FileTooLarge { .. }, .. }));
    let highest = Header { size: u64::MAX >> 1, ..Header::new(b'0', "highest") };
    let highest = Tarball::new().header(&highest).finish();
    assert!(matches!(refused(&highest), LayerError::Entry { source: EntryError::FileTooLarge { .. }, .. }));

    let many = (0..101).fold(Tarball::new(), |tar, n| tar.fifo(&format!("{n}")));
    assert!(matches!(refused(&many.finish()), LayerError::TooManyEntries { limit: 100 }));

    let same = (0..101).fold(Tarball::new(), |tar, _| tar.fifo("same"));
    assert!(matches!(refused(&same.finish()), LayerError::TooManyEntries { limit: 100 }));

    let deep = (0..60).fold(Tarball::new(), |tar, n| {
        tar.pax(&[("path", format!("{n}{}", "/d".repeat(2000)).as_bytes())]).fifo("x")
    });
    assert!(matches!(refused(&deep.finish()), LayerError::Blob(_)));

    let xattrs = Tarball::new().pax(&[("SCHILY.xattr.user.a", &[0; 1001])]).file("f", b"").finish();
    assert!(matches!(refused(&xattrs), LayerError::Entry { source: EntryError::XattrsTooLarge { .. }, .. }));

    let header = Tarball::new().pax(&[("comment", &[b'c'; 5001])]).file("f", b"").finish();
    assert!(matches!(refused(&header), LayerError::ExtendedHeader { .. }));
    let endless = Header { size: u64::MAX >> 1, ..Header::new(b'L', "././@LongLink") };
    assert!(matches!(refused(&Tarball::new().header(&endless).finish()), LayerError::ExtendedHeader { .. }));
}

#[test]
fn a_blob_beyond_its_limit_is_refused() {
    let limits = LayerLimits { blob_bytes: 100 << 10, ..LayerLimits::default() };
    let tar = Tarball::new().file("f", &[1; 200 << 10]).finish();
    assert!(matches!(refusal_with(&tar, &limits), LayerError::Blob(_)));
}

#[test]
fn root_attributes_that_do_not_fit_are_refused() {
    let tar = Tarball::new().pax(&[("SCHILY.xattr.user.a", &[0; 4000])]).dir("./");
    assert!(matches!(refusal(tar), LayerError::Blob(_)));
}

#[test]
fn i12_a_stream_cut_anywhere_within_an_entry_is_an_error() {
    let tar = Tarball::new()
        .dir("d")
        .pax(&[("path", b"long/name")])
        .file("f", &[7; 3000])
        .pax(&[("GNU.sparse.map", b"0,512,4096,512"), ("GNU.sparse.size", b"8192")])
        .file("s", &[9; 1024])
        .unfinished();
    let file_at = 512 + 1024 + 512;
    let padding = file_at + 3000..=file_at + 3072;
    for len in 1..tar.len() {
        let result = Blob::with_limits(&tar[..len], &LayerLimits::default());
        if len == 512 || padding.contains(&len) {
            assert!(result.is_ok(), "{len}: Go accepts an archive without its end mark and last padding");
        } else {
            let error = result.err().unwrap_or_else(|| panic!("cut at {len}"));
            assert!(matches!(error, LayerError::Truncated { offset } if offset == len as u64), "{error:?}");
        }
    }
}

#[test]
fn a_source_that_fails_is_an_error() {
    struct Fails;
    impl io::Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("line cut"))
        }
    }
    let tar = Tarball::new().header(&Header { size: 5000, ..Header::new(b'0', "f") }).unfinished();
    let error = Blob::with_limits(io::Read::chain(&tar[..], Fails), &LayerLimits::default()).err();
    assert!(matches!(error, Some(LayerError::Read(_))));
}

#[test]
fn garbage_where_a_header_should_be_is_an_error() {
    let garbage = [0x41; 2048];
    assert!(matches!(refusal_with(&garbage, &LayerLimits::default()), LayerError::Header { offset: 0, .. }));
    let mut bad_sum = Tarball::new().file("f", b"").finish();
    bad_sum[0] ^= 1;
    assert!(matches!(refusal_with(&bad_sum, &LayerLimits::default()), LayerError::Header { .. }));
    let lone_zero = [vec![0; 512], Tarball::new().file("f", b"").finish()].concat();
    assert!(matches!(
        refusal_with(&lone_zero, &LayerLimits::default()),
        LayerError::Header { offset: 512, .. }
    ));
}

#[test]
fn nothing_outside_the_blob_is_touched() {
    let canary = tempfile::tempdir().unwrap();
    let path = canary.path().join("canary");
    std::fs::write(&path, b"alive").unwrap();
    let name = path.to_str().unwrap();
    let tar = Tarball::new()
        .pax(&[("path", name.as_bytes())])
        .file("f", b"dead")
        .symlink("s", canary.path().to_str().unwrap())
        .pax(&[("path", format!("{}/.wh.canary", canary.path().display()).as_bytes())])
        .file("w", b"")
        .finish();
    let blob = Blob::of(&tar);
    assert_eq!(std::fs::read(&path).unwrap(), b"alive");
    assert_eq!(std::fs::read_dir(canary.path()).unwrap().count(), 1);
    assert!(blob.tree().contains_key(&name.as_bytes()[1..]));
}

/// Names from a small alphabet, so that entries meet each other.
fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        3 => "[ab]".prop_map(String::from),
        1 => prop_oneof![Just("."), Just(".."), Just(".wh.a"), Just(".wh..wh..opq"), Just(""), Just("+"), Just("..a")]
            .prop_map(String::from),
    ];
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
}

fn entry() -> impl Strategy<Value = (u8, String, String, Vec<u8>)> {
    let type_flag = prop_oneof![Just(b'0'), Just(b'1'), Just(b'2'), Just(b'3'), Just(b'5'), Just(b'6')];
    (type_flag, name(), name(), prop::collection::vec(any::<u8>(), 0..6000))
}

fn archive(entries: &[(u8, String, String, Vec<u8>)]) -> Vec<u8> {
    let tar = entries.iter().fold(Tarball::new(), |tar, (type_flag, name, link, data)| match type_flag {
        b'0' => tar.file(name, data),
        b'1' => tar.hard_link(name, link),
        b'2' => tar.symlink(name, link),
        b'3' => tar.device(b'3', name, 1, 3),
        b'5' => tar.dir(name),
        _ => tar.fifo(name),
    });
    tar.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Entries that are refused are taken out one by one; what remains must be a good file system.
    #[test]
    fn any_sequence_of_entries_is_refused_or_readable(mut entries in prop::collection::vec(entry(), 0..40)) {
        let blob = loop {
            match Blob::with_limits(&archive(&entries)[..], &LayerLimits::default()) {
                Ok(blob) => break blob,
                Err(LayerError::Entry { entry, .. }) => {
                    let before = entries.len();
                    let name = entry.to_string();
                    entries.retain(|(_, other, ..)| *other != name);
                    prop_assert!(entries.len() < before, "{name:?} is not in the archive");
                }
                Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
        };
        let tree = blob.tree();
        for node in tree.values() {
            let names = tree.values().filter(|other| other.first_name == node.first_name).count() as u64;
            prop_assert!(node.nlink == 0 || node.nlink == names, "{node:?}");
        }
    }

    #[test]
    fn a_damaged_archive_is_refused_or_readable(
        entries in prop::collection::vec(entry(), 1..10),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut tar = archive(&entries);
        for (at, byte) in &damage {
            tar[at.index(entries.len() * 512)] = *byte;
        }
        // Right checksums carry the damage past the first check.
        for record in tar.chunks_exact_mut(512) {
            if &record[257..262] == b"ustar" {
                seal(record.try_into().unwrap());
            }
        }
        let limits = LayerLimits { blob_bytes: 64 << 20, ..LayerLimits::default() };
        if let Ok(blob) = Blob::with_limits(&tar[..], &limits) {
            blob.tree();
        }
    }
}
