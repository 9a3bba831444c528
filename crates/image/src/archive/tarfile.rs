//! Where the files of an archive lie: one pass over its tar headers.
//!
//! Only what image archives are made of is understood: files, directories, links within the archive, and the
//! name and size records of pax and GNU tar. Headers are hostile: records, names and their number are bounded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::ImportError;

const RECORD: u64 = 512;

/// Entries of one archive: an image has a few hundred.
const MAX_ENTRIES: usize = 100_000;

/// Longest name, and longest extended header.
const MAX_NAME: usize = 4096;
const MAX_EXTENDED: u64 = 64 << 10;

/// Links that are followed from one name.
const MAX_LINKS: usize = 8;

/// Names and places of files.
#[derive(Debug, Default)]
pub(super) struct TarIndex {
    files: BTreeMap<String, (u64, u64)>,
    links: BTreeMap<String, String>,
}

/// What a header said, overrides of extended headers included.
#[derive(Default)]
struct Overrides {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl TarIndex {
    /// Reads all headers of `file`.
    pub(super) fn read(file: &File, path: &Path) -> Result<Self, ImportError> {
        let mut index = Self::default();
        let mut walk = Walk { file, path, offset: 0 };
        let mut overrides = Overrides::default();
        let mut entries = 0;
        while let Some(header) = walk.header()? {
            entries += 1;
            if entries > MAX_ENTRIES {
                return Err(walk.error("too many entries"));
            }
            match header.kind {
                b'x' => walk.pax(&header, &mut overrides)?,
                b'g' => {}
                b'L' => overrides.name = Some(walk.long_name(&header)?),
                b'K' => overrides.link = Some(walk.long_name(&header)?),
                kind => {
                    let told = std::mem::take(&mut overrides);
                    let size = told.size.unwrap_or(header.size);
                    let name = told.name.unwrap_or(header.name);
                    let link = told.link.unwrap_or(header.link);
                    let outside = |name| ImportError::Traversal { path: path.to_owned(), name };
                    let carries_data =
                        index.add(&Header { kind, name, link, size }, walk.offset).map_err(outside)?;
                    walk.skip(if carries_data { size } else { 0 })?;
                    continue;
                }
            }
            walk.skip(header.size)?;
        }
        Ok(index)
    }

    /// Position and length of a file, links resolved.
    pub(super) fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = clean(name)?;
        for _ in 0..MAX_LINKS {
            if let Some(place) = self.files.get(&name) {
                return Some(*place);
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }

    /// Adds an entry whose data begin at `at`; tells whether it has any. The error is a name that leads out.
    fn add(&mut self, entry: &Header, at: u64) -> Result<bool, String> {
        let Header { kind, name, link, size } = entry;
        let name = clean(name).ok_or_else(|| name.clone())?;
        match kind {
            b'0' | 0 | b'7' => {
                self.links.remove(&name);
                self.files.insert(name, (at, *size));
                Ok(true)
            }
            // A hard link names its target from the top, a symbolic one from where it lies.
            b'1' | b'2' => {
                let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                let from_top = if *kind == b'1' { link.clone() } else { format!("{dir}/{link}") };
                let target = if link.starts_with('/') { None } else { resolved(&from_top) };
                self.files.remove(&name);
                self.links.insert(name, target.ok_or_else(|| link.clone())?);
                Ok(false)
            }
            b'3' | b'4' | b'5' | b'6' => Ok(false),
            _ => Ok(true),
        }
    }
}

/// A name without `./`, or none where it is absolute or has a `..`.
fn clean(name: &str) -> Option<String> {
    if name.starts_with('/') || name.split('/').any(|part| part == "..") {
        return None;
    }
    Some(name.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/"))
}

/// A link's target from the top, or none where it climbs out.
fn resolved(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

struct Header {
    kind: u8,
    name: String,
    link: String,
    size: u64,
}

struct Walk<'a> {
    file: &'a File,
    path: &'a Path,
    /// Just behind the last header.
    offset: u64,
}

impl Walk<'_> {
    /// The next header; none at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, ImportError> {
        let mut block = [0; RECORD as usize];
        match self.file.read_exact_at(&mut block, self.offset) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.offset > 0 => {
                return Err(self.error("it ends without an end mark"));
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(self.error("no header")),
            Err(source) => return Err(ImportError::Read { path: self.path.to_owned(), source }),
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = parse_header(&block).ok_or_else(|| self.error("bad header"))?;
        self.offset += RECORD;
        Ok(Some(header))
    }

    /// Moves behind the data of an entry.
    fn skip(&mut self, size: u64) -> Result<(), ImportError> {
        let padded = size.checked_next_multiple_of(RECORD).and_then(|padded| self.offset.checked_add(padded));
        self.offset = padded.ok_or_else(|| self.error("impossible size"))?;
        Ok(())
    }

    fn extended(&self, header: &Header) -> Result<Vec<u8>, ImportError> {
        if header.size > MAX_EXTENDED {
            return Err(self.error("too long an extended header"));
        }
        // Bounded just above.
        let mut bytes = vec![0; header.size as usize];
        self.file
            .read_exact_at(&mut bytes, self.offset)
            .map_err(|_| self.error("cut off extended header"))?;
        Ok(bytes)
    }

    fn long_name(&self, header: &Header) -> Result<String, ImportError> {
        text_of(&self.extended(header)?).ok_or_else(|| self.error("bad long name"))
    }

    /// Takes `path`, `linkpath` and `size` from pax records (`LENGTH KEY=VALUE\n` each).
    fn pax(&self, header: &Header, overrides: &mut Overrides) -> Result<(), ImportError> {
        let bytes = self.extended(header)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (key, value, after) = pax_record(rest).ok_or_else(|| self.error("bad pax record"))?;
            let text = || text_of(value).ok_or_else(|| self.error("bad pax name"));
            match key {
                b"path" => overrides.name = Some(text()?),
                b"linkpath" => overrides.link = Some(text()?),
                b"size" => {
                    let size = text()?.parse().map_err(|_| self.error("bad pax size"))?;
                    overrides.size = Some(size);
                }
                _ => {}
            }
            rest = after;
        }
        Ok(())
    }

    fn error(&self, problem: &'static str) -> ImportError {
        ImportError::Tar { path: self.path.to_owned(), problem, offset: self.offset }
    }
}

fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(8).position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
}

fn parse_header(block: &[u8; RECORD as usize]) -> Option<Header> {
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { u64::from(byte) })
        .sum();
    if number(&block[148..156])? != sum {
        return None;
    }
    let mut name = text_of(&block[..100])?;
    if block[257..263] == *b"ustar\0" {
        let prefix = text_of(&block[345..500])?;
        if !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
    }
    Some(Header { kind: block[156], name, link: text_of(&block[157..257])?, size: number(&block[124..136])? })
}

/// Octal digits, or GNU's base 256 with the top bit set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] == 0x80 {
        return field[1..]
            .iter()
            .try_fold(0u64, |value, &byte| value.checked_mul(256)?.checked_add(u64::from(byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// Text up to the first zero byte.
fn text_of(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let text = std::str::from_utf8(&field[..end]).ok()?;
    (text.len() <= MAX_NAME).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn index(bytes: &[u8]) -> Result<TarIndex, ImportError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        TarIndex::read(&file, Path::new("test.tar"))
    }

    fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn file(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    }

    /// A header with a name that the tar crate would refuse to write.
    fn raw_entry(kind: u8, name: &str, link: &str) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.as_mut_bytes()[156] = kind;
        header.set_size(0);
        header.set_cksum();
        [header.as_bytes().as_slice(), &[0; 1024]].concat()
    }

    #[test]
    fn files_are_found_with_short_and_long_names() {
        let long = format!("{}/layer.tar", "d".repeat(200));
        let bytes = archive(|builder| {
            file(builder, "./index.json", b"{}");
            file(builder, &long, b"12345");
        });
        let index = index(&bytes).unwrap();
        assert_eq!(index.find("index.json").unwrap().1, 2);
        let (at, size) = index.find(&long).unwrap();
        assert_eq!(&bytes[at as usize..(at + size) as usize], b"12345");
        assert_eq!(index.find("other"), None);
    }

    #[test]
    fn pax_names_and_sizes_are_used() {
        let bytes = archive(|builder| {
            builder.append_pax_extensions([("path", &b"renamed"[..])]).unwrap();
            file(builder, "short", b"abc");
        });
        assert_eq!(index(&bytes).unwrap().find("renamed").unwrap().1, 3);
    }

    #[test]
    fn links_lead_to_files_of_the_archive() {
        let bytes = archive(|builder| {
            file(builder, "a/layer.tar", b"x");
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, "b/layer.tar", "../a/layer.tar").unwrap();
        });
        let index = index(&bytes).unwrap();
        assert_eq!(index.find("b/layer.tar"), index.find("a/layer.tar"));
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for (kind, name, link) in [
            (b'0', "../x", ""),
            (b'0', "/etc/passwd", ""),
            (b'0', "a/../../x", ""),
            (b'5', "..", ""),
            (b'2', "a", "../x"),
            (b'2', "a", "/etc/passwd"),
            (b'1', "a", "../x"),
            (b'1', "a", "/x"),
        ] {
            let result = index(&raw_entry(kind, name, link));
            assert!(matches!(result, Err(ImportError::Traversal { .. })), "{name} {link}");
        }
    }

    #[test]
    fn links_in_a_circle_lead_nowhere() {
        let bytes = [&raw_entry(b'2', "a", "b")[..512], &raw_entry(b'2', "b", "a")].concat();
        assert_eq!(index(&bytes).unwrap().find("a"), None);
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let whole = archive(|builder| file(builder, "a", &[1; 600]));
        for bytes in [&b""[..], b"text", &[1; 1024], &whole[..512], &whole[..1100]] {
            assert!(matches!(index(bytes), Err(ImportError::Tar { .. })), "{} bytes", bytes.len());
        }
    }

    #[test]
    fn huge_extended_headers_are_refused() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        assert!(matches!(
            index(header.as_bytes()),
            Err(ImportError::Tar { problem: "too long an extended header", .. })
        ));
    }

    proptest! {
        #[test]
        fn damaged_archives_never_panic(at in 0usize..4096, byte: u8, resum: bool) {
            let mut bytes = archive(|builder| {
                builder.append_pax_extensions([("path", &b"renamed"[..])]).unwrap();
                file(builder, &"n".repeat(150), b"abc");
            });
            let at = at % bytes.len();
            bytes[at] = byte;
            if resum {
                for block in bytes.chunks_exact_mut(512) {
                    let mut header = tar::Header::new_gnu();
                    header.as_mut_bytes().copy_from_slice(block);
                    header.set_cksum();
                    block.copy_from_slice(header.as_bytes());
                }
            }
            let _ = index(&bytes);
        }

        #[test]
        fn pax_records_parse_or_not_without_panic(bytes: Vec<u8>) {
            pax_record(&bytes);
        }

        #[test]
        fn clean_names_stay_inside(name in "[a./]{0,20}") {
            if let Some(clean) = clean(&name) {
                prop_assert!(!clean.starts_with('/') && clean.split('/').all(|part| part != ".."));
            }
        }
    }
}
