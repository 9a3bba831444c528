//! Which directories a stack of layers shows wrongly, and a layer that shows them right.
//!
//! A path concerns us if the topmost layer that has it as a directory does not describe it, and a lower one
//! does, with other attributes than 0755 and root. Whiteouts, files and opaque directories on the way end the
//! look downwards. Extended attributes of directories are not carried over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use crate::erofs::{DirReader, Lookup, Owner};
use crate::store::{LayerRecord, Store, StoreError, path_bytes};

/// Paths that are looked at. A hostile image may name more; it then gets 0755 on the rest.
const MAX_PATHS: usize = 4096;

/// Longest name that a tar header holds itself.
const TAR_NAME_LEN: usize = 100;
const RECORD: usize = 512;

struct Layer {
    reader: DirReader,
    implied: BTreeSet<Vec<u8>>,
    more_implied: bool,
    path: std::path::PathBuf,
}

/// How the stack shows a directory.
struct Shown {
    /// How it should be.
    attributes: Owner,
    /// Its topmost layer says otherwise.
    wrong: bool,
}

/// A tar stream of corrected directories, with all that lead to them; none where everything is right.
pub(super) fn corrections(store: &Store, layers: &[LayerRecord]) -> Result<Option<Vec<u8>>, StoreError> {
    let visible = layers.iter().rposition(|layer| layer.root_opaque).unwrap_or(0);
    let layers = &layers[visible..];
    if layers.len() < 2 {
        return Ok(None);
    }
    // From here on the topmost layer is the first.
    let layers = layers.iter().rev().map(|layer| Layer::open(store, layer)).collect::<Result<Vec<_>, _>>()?;
    // The lowest layer has none below to disagree with.
    let above = &layers[..layers.len() - 1];
    let paths: BTreeSet<&Vec<u8>> = above.iter().flat_map(|layer| &layer.implied).take(MAX_PATHS).collect();
    let mut wrong = BTreeMap::new();
    for path in paths {
        if let Some(shown) = shown(&layers, path)?.filter(|shown| shown.wrong) {
            wrong.insert(path.clone(), shown.attributes);
        }
    }
    if wrong.is_empty() {
        return Ok(None);
    }
    // The new layer is on top of all, so what leads to its directories must be described as well.
    let parents: BTreeSet<Vec<u8>> = wrong.keys().flat_map(|path| parents(path)).collect();
    for parent in parents {
        if let Some(shown) = shown(&layers, &parent)? {
            wrong.entry(parent).or_insert(shown.attributes);
        }
    }
    Ok(Some(tar_of(&wrong)))
}

impl Layer {
    fn open(store: &Store, record: &LayerRecord) -> Result<Self, StoreError> {
        let path = store.layer_path(&record.diff_id);
        let failed = |error| StoreError::io("read", &path, error);
        let reader = DirReader::new(File::open(&path).map_err(failed)?).map_err(failed)?;
        let meta = store.layer_meta(&record.diff_id)?;
        let implied = meta.iter().flat_map(|meta| &meta.implied_dirs).map(|text| path_bytes(text)).collect();
        let more_implied = meta.is_some_and(|meta| meta.more_implied_dirs);
        Ok(Self { reader, implied, more_implied, path })
    }

    /// Whether the layer only passes through the directory. With a list that is not complete, a directory that
    /// looks like one that nobody described is taken for one.
    fn implies(&self, path: &[u8], attributes: &Owner) -> bool {
        self.implied.contains(path) || self.more_implied && is_default(attributes)
    }
}

fn is_default(attributes: &Owner) -> bool {
    (attributes.mode, attributes.uid, attributes.gid) == (0o755, 0, 0)
}

/// None: the stack does not show a directory there.
fn shown(layers: &[Layer], path: &[u8]) -> Result<Option<Shown>, StoreError> {
    let mut implied = None;
    for layer in layers {
        match layer.reader.lookup(path).map_err(|error| StoreError::io("read", &layer.path, error))? {
            Lookup::Absent { hides: false } => {}
            Lookup::Absent { hides: true } | Lookup::Other => break,
            Lookup::Dir { attributes, hides } => {
                if !layer.implies(path, &attributes) {
                    let wrong = implied.is_some() && !is_default(&attributes);
                    return Ok(Some(Shown { attributes, wrong }));
                }
                implied.get_or_insert(attributes);
                if hides {
                    break;
                }
            }
        }
    }
    Ok(implied.map(|attributes| Shown { attributes, wrong: false }))
}

/// `a/b/c` -> the root, `a`, `a/b`.
fn parents(path: &[u8]) -> Vec<Vec<u8>> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let mut parents: Vec<Vec<u8>> = slashes.map(|at| path[..at].to_vec()).collect();
    if !path.is_empty() {
        parents.push(Vec::new());
    }
    parents
}

/// Directories as a tar archive, in the order of their paths.
fn tar_of(directories: &BTreeMap<Vec<u8>, Owner>) -> Vec<u8> {
    let mut tar = Vec::new();
    for (path, owner) in directories {
        let name = [b"./".as_slice(), path, b"/"].concat();
        let name = if path.is_empty() { b"./".to_vec() } else { name };
        let numbers = [("uid", u64::from(owner.uid)), ("gid", u64::from(owner.gid))];
        let mut records = Vec::new();
        if name.len() > TAR_NAME_LEN {
            pax_record(&mut records, "path", &name);
        }
        for (key, number) in numbers {
            if number > 0o7_777_777 {
                pax_record(&mut records, key, number.to_string().as_bytes());
            }
        }
        if !records.is_empty() {
            tar.extend_from_slice(&header(
                b'x',
                b"pax",
                records.len(),
                &Owner { mode: 0o644, uid: 0, gid: 0, mtime: 0 },
            ));
            tar.extend_from_slice(&records);
            tar.resize(tar.len().next_multiple_of(RECORD), 0);
        }
        tar.extend_from_slice(&header(b'5', &name, 0, owner));
    }
    tar.resize(tar.len() + 2 * RECORD, 0);
    tar
}

/// `LENGTH KEY=VALUE\n`, the length counting itself.
fn pax_record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn header(kind: u8, name: &[u8], size: usize, owner: &Owner) -> [u8; RECORD] {
    let mut header = [0; RECORD];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(TAR_NAME_LEN)]);
    put(100, format!("{:07o}", owner.mode).as_bytes());
    put(108, format!("{:07o}", owner.uid & 0o7_777_777).as_bytes());
    put(116, format!("{:07o}", owner.gid & 0o7_777_777).as_bytes());
    put(124, format!("{size:011o}").as_bytes());
    // Eleven octal digits: to the year 2242. An odd time in an image is not worth an extended header.
    put(136, format!("{:011o}", owner.mtime.clamp(0, 0o77_777_777_777)).as_bytes());
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    put(148, b"        ");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::ingest::{LayerSpec, ingest};
    use crate::layer::LayerLimits;
    use proptest::prelude::*;

    /// Entries of a layer: a name, and mode and owner for a directory.
    type Entries<'a> = &'a [(&'a str, Option<(u32, u64)>)];

    fn layer(store: &Store, entries: Entries<'_>) -> LayerRecord {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, dir) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            if let Some((mode, owner)) = dir {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_uid(*owner);
                header.set_gid(*owner);
            }
            builder.append_data(&mut header, name, &[][..]).unwrap();
        }
        put(store, &builder.into_inner().unwrap())
    }

    fn put(store: &Store, tar: &[u8]) -> LayerRecord {
        let spec = LayerSpec { digest: None, size: tar.len() as u64, diff_id: Digest::sha256(tar) };
        LayerRecord::from(&ingest(store, &spec, tar, &LayerLimits::default()).unwrap())
    }

    /// Mode and owner of every corrected directory of a stack, lowest layer first.
    fn corrected(stack: &[Entries<'_>]) -> Vec<(String, u32, u64)> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let layers: Vec<_> = stack.iter().map(|entries| layer(&store, entries)).collect();
        let Some(tar) = corrections(&store, &layers).unwrap() else { return Vec::new() };
        // Our own reader of layers takes it.
        put(&store, &tar);
        let mut archive = tar::Archive::new(tar.as_slice());
        let described = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            (name, entry.header().mode().unwrap(), entry.header().uid().unwrap())
        });
        described.collect()
    }

    fn names(found: &[(String, u32, u64)]) -> Vec<&str> {
        found.iter().map(|(name, ..)| name.trim_start_matches("./")).collect()
    }

    const BASE: Entries<'_> =
        &[("tmp/", Some((0o1777, 0))), ("home/", Some((0o755, 0))), ("home/u/", Some((0o700, 1000)))];

    #[test]
    fn directories_that_are_only_passed_through_keep_their_attributes() {
        let found = corrected(&[BASE, &[("tmp/x", None), ("home/u/f", None), ("home/f", None)]]);
        assert_eq!(
            found,
            [
                ("./".into(), 0o755, 0),
                ("./home/".into(), 0o755, 0),
                ("./home/u/".into(), 0o700, 1000),
                ("./tmp/".into(), 0o1777, 0),
            ]
        );
    }

    #[test]
    fn stacks_that_are_right_get_nothing() {
        assert!(corrected(&[BASE]).is_empty());
        assert!(corrected(&[BASE, &[("etc/x", None), ("home/x", None)]]).is_empty());
        assert!(corrected(&[BASE, &[("tmp/", Some((0o755, 0))), ("tmp/x", None)]]).is_empty());
        assert!(corrected(&[&[("tmp/x", None)], BASE]).is_empty());
    }

    #[test]
    fn latest_description_counts() {
        let found = corrected(&[BASE, &[("tmp/", Some((0o711, 7)))], &[("tmp/x", None)], &[("tmp/y", None)]]);
        assert!(found.contains(&("./tmp/".into(), 0o711, 7)), "{found:?}");
    }

    #[test]
    fn removed_directories_do_not_come_back() {
        let gone = &[(".wh.tmp", None)];
        assert!(corrected(&[BASE, &[("tmp/x", None)], gone]).is_empty());
        assert!(corrected(&[BASE, gone, &[("tmp/x", None)]]).is_empty());
        assert!(corrected(&[BASE, &[("tmp/.wh..wh..opq", None)], &[("tmp/x", None)]]).is_empty());
        assert!(corrected(&[BASE, &[("tmp", None)], &[("tmp/x", None)]]).is_empty());
        assert!(corrected(&[BASE, &[(".wh.home", None)], &[("home/u/x", None)]]).is_empty());
        assert!(corrected(&[BASE, &[(".wh..wh..opq", None)], &[("tmp/x", None)]]).is_empty());
    }

    #[test]
    fn long_names_and_large_owners_survive() {
        let long = format!("{}/", "n".repeat(150));
        let base: Entries<'_> = &[(&long, Some((0o700, 3_000_000)))];
        let file = format!("{long}x");
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let layers = [layer(&store, base), layer(&store, &[(&file, None)])];
        let tar = corrections(&store, &layers).unwrap().unwrap();
        let correction = Layer::open(&store, &put(&store, &tar)).unwrap();
        let found = correction.reader.lookup(long.trim_end_matches('/').as_bytes()).unwrap();
        assert!(matches!(
            found,
            Lookup::Dir { attributes: Owner { mode: 0o700, uid: 3_000_000, gid: 3_000_000, .. }, .. }
        ));
        assert_eq!(names(&corrected(&[base, &[(&file, None)]])), ["", long.as_str()]);
    }

    proptest! {
        #[test]
        fn pax_records_state_their_own_length(length in 0usize..2000) {
            let mut record = Vec::new();
            pax_record(&mut record, "path", &vec![b'x'; length]);
            let text = String::from_utf8(record).unwrap();
            prop_assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), text.len());
        }

        #[test]
        fn parents_are_proper_beginnings(path in "[a-c]{1,3}(/[a-c]{1,3}){0,4}") {
            for parent in parents(path.as_bytes()) {
                prop_assert!(parent.is_empty() || path.as_bytes().starts_with(&parent) && path.as_bytes()[parent.len()] == b'/');
            }
        }
    }
}
