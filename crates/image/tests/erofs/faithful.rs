//! What is in the archive is in the blob, to the last attribute.

use crate::oracles::{Blob, packed_by_gnu_tar, unpacked_by_gnu_tar};
use crate::tarball::{Header, Tarball};
use crate::tree::assert_same;

/// Converts, has all readers agree, and compares with what GNU tar unpacks.
fn check(tar: &[u8]) -> Blob {
    let blob = Blob::of(tar);
    let ours = blob.read_by_all();
    if let Some(theirs) = unpacked_by_gnu_tar(tar) {
        assert_same("GNU tar", &theirs, "blob", &ours);
    }
    blob
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8 ^ seed)).collect()
}

#[test]
fn every_kind_of_entry_is_read_back_by_every_reader() {
    let tar = Tarball::new()
        .dir("./")
        .header(&Header { mode: 0o1777, uid: 7, gid: 8, ..Header::new(b'5', "tmp") })
        .dir("etc/")
        .file("etc/empty", b"")
        .file("etc/small", b"hello\n")
        .header(&Header { mode: 0o4755, uid: 1000, gid: 100, size: 3, ..Header::new(b'0', "etc/suid") })
        .data(b"abc")
        .symlink("etc/link", "does/not/exist")
        .hard_link("etc/other-name", "etc/small")
        .hard_link("third-name", "./etc/other-name")
        .device(b'3', "null", 1, 3)
        .device(b'4', "disk", 259, 70_000)
        .fifo("pipe")
        .finish();
    let tree = check(&tar).tree();
    assert_eq!(tree[b"third-name".as_slice()].nlink, 3);
}

#[test]
fn targets_of_symbolic_links_are_content_whatever_they_say() {
    let targets = ["/etc/passwd", "../../..", "/", ".", "a//b/"];
    let tar = targets
        .iter()
        .enumerate()
        .fold(Tarball::new(), |tar, (n, target)| tar.symlink(&format!("link{n}"), target));
    // GNU tar makes links out of the tree last and so is no judge of the directory's time.
    let tree = Blob::of(&tar.finish()).read_by_all();
    for (n, target) in targets.iter().enumerate() {
        assert_eq!(tree[format!("link{n}").as_bytes()].content, target.as_bytes());
    }
}

#[test]
fn files_of_every_size_around_a_block_keep_their_bytes() {
    let sizes = [1, 511, 512, 513, 4031, 4032, 4033, 4064, 4065, 4095, 4096, 4097, 8191, 8192, 8193, 300_001];
    let mut tar = Tarball::new().dir("./");
    for size in sizes {
        tar = tar.file(format!("f{size}"), &bytes(size, size as u8));
    }
    check(&tar.finish());
}

#[test]
fn directories_of_many_blocks_keep_all_names() {
    let mut tar = Tarball::new().dir("./").dir("many");
    for n in 0..3000 {
        tar = tar.file(format!("many/{n:x}-{}", "n".repeat(n % 80)), b"");
    }
    // These sort before "." and between "." and "..".
    for name in ["!first", "+plus", "-dash", "..a", "...", ".-", ".hidden", "~last", "\u{e4}"] {
        tar = tar.file(format!("many/{name}"), name.as_bytes());
    }
    check(&tar.finish());
}

#[test]
fn the_longest_names_and_links_are_kept() {
    let name = "n".repeat(255);
    let target = "t/".repeat(2047) + "x";
    let deep = vec!["d".repeat(200); 20].join("/");
    let tar = Tarball::new()
        .dir("./")
        .pax(&[("path", name.as_bytes())])
        .file("short", b"long name")
        .pax(&[("linkpath", target.as_bytes())])
        .symlink("link", "short")
        .pax(&[("linkpath", &target.as_bytes()[..4000])])
        .symlink("inline-link", "short")
        .pax(&[("path", deep.as_bytes())])
        .dir("short")
        .finish();
    let tree = Blob::of(&tar).read_by_all();
    assert_eq!(tree[name.as_bytes()].size, 9);
    assert_eq!(tree[b"link".as_slice()].content, target.as_bytes());
    assert!(tree.contains_key(deep.as_bytes()));
}

#[test]
fn extended_attributes_of_every_namespace_are_kept() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let large = bytes(3900, 1);
    let tar = Tarball::new()
        .dir("./")
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.empty", b"")])
        .file("bin", b"\x7fELF")
        .pax(&[("SCHILY.xattr.user.large", &large), ("SCHILY.xattr.user.b", b"\0=\n")])
        .file("large", &bytes(5000, 2))
        .pax(&[("SCHILY.xattr.trusted.x", b"root only"), ("SCHILY.xattr.user.dir", b"d")])
        .dir("dir")
        .pax(&[("SCHILY.xattr.user.root", b"r")])
        .dir("./")
        .pax(&[("SCHILY.xattr.com.apple.provenance", b"left out")])
        .file("mac", b"")
        .finish();
    let tree = Blob::of(&tar).read_by_all();
    assert_eq!(tree[b"bin".as_slice()].xattrs[b"security.capability".as_slice()], capability);
    assert_eq!(tree[b"bin".as_slice()].xattrs[b"user.empty".as_slice()], b"");
    assert_eq!(tree[b"large".as_slice()].xattrs[b"user.large".as_slice()], large);
    assert_eq!(tree[b"dir".as_slice()].xattrs.len(), 2);
    assert_eq!(tree[b"".as_slice()].xattrs[b"user.root".as_slice()], b"r");
    assert!(tree[b"mac".as_slice()].xattrs.is_empty());
}

#[test]
fn attributes_larger_than_a_block_are_kept() {
    let values = [bytes(60_000, 1), bytes(50_000, 2)];
    let tar = Tarball::new()
        .pax(&[("SCHILY.xattr.user.a", &values[0]), ("SCHILY.xattr.user.b", &values[1])])
        .file("file", &bytes(100, 3))
        .pax(&[("SCHILY.xattr.user.a", &values[0])])
        .dir("dir")
        .finish();
    let tree = Blob::of(&tar).read_by_all();
    assert_eq!(tree[b"file".as_slice()].xattrs[b"user.b".as_slice()], values[1]);
    assert_eq!(tree[b"dir".as_slice()].xattrs[b"user.a".as_slice()], values[0]);
}

#[test]
fn access_control_lists_are_kept() {
    // Version 2; user::rw-, user:1000:r--, group::r--, mask::r--, other::---.
    let acl: Vec<u8> = [2u32.to_le_bytes().to_vec()]
        .into_iter()
        .chain(
            [(1u16, 6u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
                .map(|(tag, perm, id)| {
                    [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
                }),
        )
        .flatten()
        .collect();
    let tar = Tarball::new().pax(&[("SCHILY.xattr.system.posix_acl_access", &acl)]).file("f", b"").finish();
    let tree = Blob::of(&tar).read_by_all();
    assert_eq!(tree[b"f".as_slice()].xattrs[b"system.posix_acl_access".as_slice()], acl);
}

#[test]
fn large_owners_and_exact_times_are_kept() {
    let tar = Tarball::new()
        .dir("./")
        .pax(&[("uid", b"4294967294"), ("gid", b"70000"), ("mtime", b"1234567890.123456789")])
        .file("far", b"x")
        .pax(&[("mtime", b"-1.5")])
        .file("before-1970", b"x")
        .header(&Header { uid: 3_000_000_000, mtime: 9_000_000_000, ..Header::new(b'5', "base256") })
        .finish();
    let tree = check(&tar).tree();
    assert_eq!(tree[b"far".as_slice()].owner, (4_294_967_294, 70_000));
    assert_eq!(tree[b"before-1970".as_slice()].mtime, (-2, 500_000_000));
    assert_eq!(tree[b"base256".as_slice()].mtime.0, 9_000_000_000);
}

#[test]
fn later_entries_win() {
    let tar = Tarball::new()
        .dir("./")
        .file("file", b"old")
        .hard_link("old-name", "file")
        .file("file", b"new")
        .dir("becomes-file/sub")
        .file("becomes-file/sub/x", b"gone")
        .file("becomes-file", b"a file")
        .symlink("becomes-dir", "/etc")
        .dir("becomes-dir")
        .file("becomes-dir/x", b"inside")
        .dir("dir")
        .file("dir/kept", b"kept")
        .header(&Header { mode: 0o700, ..Header::new(b'5', "dir") })
        .file("twice/linked", b"1")
        .hard_link("twice/again", "twice/linked")
        .hard_link("twice/linked", "twice/again")
        .finish();
    let tree = Blob::of(&tar).read_by_all();
    let node = |name: &str| &tree[name.as_bytes()];
    assert_eq!((node("file").size, node("file").nlink), (3, 1));
    assert_ne!(node("file").content, node("old-name").content);
    assert_eq!(node("old-name").nlink, 1);
    assert_eq!(node("becomes-file").size, 6);
    assert!(!tree.contains_key(b"becomes-file/sub".as_slice()));
    assert_eq!(node("becomes-dir/x").size, 6);
    assert_eq!(node("dir").mode & 0o7777, 0o700);
    assert_eq!(node("dir/kept").size, 4);
    assert_eq!(node("twice/again").nlink, 2);
}

#[test]
fn missing_parents_are_made_and_reported() {
    let tar = Tarball::new().file("a/b/c", b"x").dir("a/b").dir("d/e").finish();
    let blob = Blob::of(&tar);
    let tree = blob.read_by_all();
    let made = &tree[b"a".as_slice()];
    assert_eq!((made.mode, made.owner, made.mtime), (0o040_755, (0, 0), (0, 0)));
    let implied: Vec<&[u8]> = blob.summary.implied_dirs.iter().map(Vec::as_slice).collect();
    assert_eq!(implied, [b"".as_slice(), b"a", b"d"]);
    assert_eq!(blob.summary.implied_dir_count, 3);
}

#[test]
fn an_empty_layer_is_an_empty_root() {
    for tar in [Tarball::new().finish(), Vec::new(), vec![0; 512]] {
        let blob = Blob::of(&tar);
        assert_eq!(blob.read_by_all().len(), 1);
        assert_eq!(blob.summary.blob_len, 4096);
    }
}

#[test]
fn the_same_layer_gives_the_same_bytes() {
    let mut tar = Tarball::new();
    for n in 0..2000 {
        tar = tar.file(format!("d{}/f{n}", n % 37), &bytes(n * 7 % 9000, n as u8));
    }
    let tar = tar.finish();
    let blobs: Vec<_> = (0..3).map(|_| Blob::of(&tar).bytes()).collect();
    assert!(blobs[0] == blobs[1] && blobs[1] == blobs[2]);
}

#[test]
fn the_same_bytes_in_small_pieces_give_the_same_blob() {
    struct Dribble<'a>(&'a [u8], usize);
    impl std::io::Read for Dribble<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            self.1 = self.1 * 5 % 4093 + 1;
            let len = self.1.min(out.len()).min(self.0.len());
            out[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }
    let tar = Tarball::new().file("a", &bytes(100_000, 1)).file("b", &bytes(5000, 2)).finish();
    let whole = Blob::of(&tar);
    let pieces = Blob::with_limits(Dribble(&tar, 1), &nacre_image::layer::LayerLimits::default()).unwrap();
    assert_eq!(whole.bytes(), pieces.bytes());
}

#[test]
fn the_stream_is_read_to_its_very_end() {
    let mut tar = Tarball::new().file("a", b"x").finish();
    tar.extend_from_slice(&[7; 10_000]);
    let mut rest = tar.as_slice();
    let blob = Blob::with_limits(&mut rest, &nacre_image::layer::LayerLimits::default()).unwrap();
    assert!(rest.is_empty());
    assert_eq!(blob.summary.uncompressed_bytes, tar.len() as u64);
}

#[test]
fn archives_of_gnu_tar_in_every_format_are_read_as_gnu_tar_reads_them() {
    let script = r#"
        mkdir -p a/b/c "$(printf 'x%.0s' {1..120})/$(printf 'y%.0s' {1..120})"
        seq 1 20000 > a/numbers; seq 1 10 > a/b/few; : > a/b/c/empty
        ln -s /absolute a/link; ln -s "$(printf 'z%.0s' {1..150})" a/long-link
        ln a/numbers a/b/numbers-again; mkfifo a/pipe; mknod a/char c 5 1; mknod a/block b 8 1
        chmod 4711 a/b/few; chmod 1777 a/b/c; chown 1234:5678 a/b/c/empty
        touch -d '2001-02-03 04:05:06.789' a/b/few; touch -h -d '1999-01-01' a/link
        touch "$(printf 'x%.0s' {1..120})/$(printf 'y%.0s' {1..120})/$(printf 'f%.0s' {1..200})"
    "#;
    let xattrs = ["--format=posix", "--xattrs", "--xattrs-include=*"].as_slice();
    for options in [xattrs, &["--format=gnu"], &["--format=gnu", "--sparse"]] {
        if let Some(tar) = packed_by_gnu_tar(script, options) {
            check(&tar);
        }
    }
}
