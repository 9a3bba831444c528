//! Entries of the archive: headers, long names, extended headers and sparse maps put together.

use std::collections::BTreeMap;
use std::io::Read;
use std::mem::take;

use super::error::{EntryError, LayerError};
use super::header::{Dialect, Header, HeaderError, string};
use super::input::{Input, RECORD};
use super::limits::LayerLimits;
use super::path::EntryName;
use super::pax::{self, PaxError, PaxFields};
use super::sparse::{MapNumbers, SparseError, TextMap};
use crate::erofs::{Attributes, DeviceNumber, Segment, Timestamp, XattrBody, XattrError};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Directory,
    Fifo,
}

/// An entry of the archive. Its data are still in the stream.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: EntryKind,
    pub(super) path: Vec<u8>,
    /// Target of a link.
    pub(super) link: Vec<u8>,
    pub(super) attributes: Attributes,
    /// Size of the file.
    pub(super) size: u64,
    /// Where the bytes in the stream belong; `None`: they are the whole file.
    pub(super) segments: Option<Vec<Segment>>,
}

/// The entries of a stream, one at a time.
pub(super) struct Entries<'a, R> {
    input: Input<R>,
    limits: &'a LayerLimits,
    /// Bytes of the current entry's data that are still in the stream, and of the padding behind.
    data_left: u64,
    padding: u64,
}

/// What stood before an entry's own header.
#[derive(Default)]
struct Extensions {
    pax: PaxFields,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'a, R: Read> Entries<'a, R> {
    pub(super) fn new(reader: R, limits: &'a LayerLimits) -> Self {
        Self { input: Input::new(reader, limits.stream_bytes), limits, data_left: 0, padding: 0 }
    }

    /// Bytes of the stream so far.
    pub(super) fn offset(&self) -> u64 {
        self.input.offset()
    }

    /// The next entry, or `None` when the stream has been read to its end.
    ///
    /// # Errors
    /// If the stream is not a tar archive, is cut off, or an entry is malformed.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extensions = Extensions::default();
        let mut extended = false;
        loop {
            self.input.skip(self.data_left)?;
            self.input.skip_padding(self.padding)?;
            (self.data_left, self.padding) = (0, 0);
            let offset = self.input.offset();
            let Some(record) = self.header_record()? else {
                // An extended header speaks of an entry that must follow.
                return if extended { Err(self.input.truncated()) } else { Ok(None) };
            };
            let bad_header = |source| LayerError::Header { offset, source };
            let header = Header::parse(&record).map_err(bad_header)?;
            extended = true;
            match header.type_flag {
                b'x' => {
                    let body = self.special(&header, offset)?;
                    let bad_pax = |source| LayerError::ExtendedHeader { offset, source };
                    extensions.pax = pax::parse(&body).map_err(bad_pax)?;
                }
                b'g' => {
                    let body = self.special(&header, offset)?;
                    let bad_pax = |source| LayerError::ExtendedHeader { offset, source };
                    pax::check_global(&body).map_err(bad_pax)?;
                    extended = false;
                }
                b'L' => extensions.long_name = Some(string(&self.special(&header, offset)?).to_vec()),
                b'K' => extensions.long_link = Some(string(&self.special(&header, offset)?).to_vec()),
                _ => return self.entry(&header, offset, extensions).map(Some),
            }
        }
    }

    /// Gives the data of the entry returned last to `sink`, each byte once.
    ///
    /// # Errors
    /// If the stream ends before them, and what `sink` returns.
    pub(super) fn data(
        &mut self,
        len: u64,
        sink: impl FnMut(&[u8]) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        let len = len.min(self.data_left);
        self.data_left -= len;
        self.input.copy(len, sink)
    }

    /// The next record that is a header; at the end of the archive the rest of the stream is read.
    fn header_record(&mut self) -> Result<Option<[u8; RECORD]>, LayerError> {
        let Some(record) = self.input.record()? else { return Ok(None) };
        if record != [0; RECORD] {
            return Ok(Some(record));
        }
        // Two records of zeros end an archive; Go accepts that the stream ends before either of them.
        let offset = self.input.offset();
        if self.input.record()?.is_some_and(|second| second != [0; RECORD]) {
            return Err(LayerError::Header { offset, source: HeaderError::AfterEnd });
        }
        self.input.drain()?;
        Ok(None)
    }

    /// The body of a header that speaks of another entry.
    fn special(&mut self, header: &Header<'_>, offset: u64) -> Result<Vec<u8>, LayerError> {
        let limit = self.limits.header_bytes;
        let len = usize::try_from(header.size).ok().filter(|len| *len <= limit).ok_or(
            LayerError::ExtendedHeader { offset, source: PaxError::TooLarge { len: header.size, limit } },
        )?;
        self.padding = padding(header.size);
        let mut body = Vec::with_capacity(len);
        self.input.copy(header.size, |bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(body)
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        offset: u64,
        mut extensions: Extensions,
    ) -> Result<Entry, LayerError> {
        let path = path_of(header, &mut extensions);
        let link = extensions.long_link.take().or(extensions.pax.link.take());
        let link = link.unwrap_or_else(|| header.link.to_vec());
        let refused = |source| LayerError::Entry { entry: EntryName::new(&path), source };
        let kind = kind_of(header).map_err(refused)?;
        let pax = &mut extensions.pax;
        let attributes = attributes_of(header, pax, self.limits).map_err(refused)?;
        // Only files have data, whatever the size field of other types says.
        let stored = if kind == EntryKind::File { pax.size.unwrap_or(header.size) } else { 0 };
        self.expect_data(stored).map_err(refused)?;
        let mut entry = Entry { kind, path, link, attributes, size: stored, segments: None };
        if kind == EntryKind::File {
            self.read_sparse_map(header, offset, take(&mut extensions.pax), &mut entry)?;
            // No kernel reads a file beyond this.
            let limit = self.limits.file_bytes.min(i64::MAX as u64);
            if entry.size > limit {
                let source = EntryError::FileTooLarge { size: entry.size, limit };
                return Err(LayerError::Entry { entry: EntryName::new(&entry.path), source });
            }
        }
        Ok(entry)
    }

    fn expect_data(&mut self, stored: u64) -> Result<(), EntryError> {
        if !self.input.can_hold(stored) {
            let limit = self.limits.stream_bytes;
            return Err(EntryError::FileTooLarge { size: stored, limit });
        }
        (self.data_left, self.padding) = (stored, padding(stored));
        Ok(())
    }

    /// Finds out whether the file is sparse, and if so reads its map and sets its real size.
    fn read_sparse_map(
        &mut self,
        header: &Header<'_>,
        offset: u64,
        pax: PaxFields,
        entry: &mut Entry,
    ) -> Result<(), LayerError> {
        let old_gnu = header.type_flag == b'S' && header.dialect == Dialect::Gnu;
        if !old_gnu && !pax.sparse.map_in_data && !pax.sparse.has_map {
            return Ok(());
        }
        let name = EntryName::new(&entry.path);
        let refused = |source| LayerError::Entry { entry: name.clone(), source: EntryError::Sparse(source) };
        let (numbers, size) = if old_gnu {
            let bad_header = |source| LayerError::Header { offset, source };
            let (pairs, mut more, size) = header.gnu_sparse().map_err(bad_header)?;
            let mut numbers = MapNumbers::default();
            numbers.push_gnu(pairs).map_err(refused)?;
            while more {
                let record = self.input.record()?.ok_or_else(|| self.input.truncated())?;
                numbers.push_gnu(&record[..504]).map_err(refused)?;
                more = record[504] != 0;
            }
            (numbers, Some(size))
        } else if pax.sparse.map_in_data {
            (self.read_text_map(&refused)?, pax.sparse.real_size)
        } else {
            (MapNumbers::from_pax(pax.sparse.numbers).map_err(refused)?, pax.sparse.real_size)
        };
        let size = size.ok_or_else(|| refused(SparseError::NoSize))?;
        entry.segments = Some(numbers.check(size, self.data_left).map_err(refused)?);
        entry.size = size;
        Ok(())
    }

    fn read_text_map(
        &mut self,
        refused: &dyn Fn(SparseError) -> LayerError,
    ) -> Result<MapNumbers, LayerError> {
        let mut map = TextMap::default();
        loop {
            if self.data_left < RECORD as u64 {
                return Err(refused(SparseError::Number));
            }
            let record = self.input.record()?.ok_or_else(|| self.input.truncated())?;
            self.data_left -= RECORD as u64;
            if map.push(&record).map_err(refused)? {
                return Ok(map.into_numbers());
            }
        }
    }
}

fn padding(len: u64) -> u64 {
    len.wrapping_neg() % RECORD as u64
}

/// The path: a GNU long name, else the extended header's, else the header's own with its prefix.
fn path_of(header: &Header<'_>, extensions: &mut Extensions) -> Vec<u8> {
    if let Some(name) = extensions.long_name.take() {
        return name;
    }
    // The path beside a sparse map is a made-up one.
    if let Some(path) = extensions.pax.sparse.name.take().or(extensions.pax.path.take()) {
        return path;
    }
    if header.prefix.is_empty() { header.name.to_vec() } else { [header.prefix, b"/", header.name].concat() }
}

fn kind_of(header: &Header<'_>) -> Result<EntryKind, EntryError> {
    let device = || {
        let (major, minor) = (header.major, header.minor);
        let narrow = u32::try_from(major).ok().zip(u32::try_from(minor).ok());
        narrow
            .and_then(|(major, minor)| DeviceNumber::new(major, minor))
            .ok_or(EntryError::BadDevice { major, minor })
    };
    Ok(match header.type_flag {
        // Before POSIX a directory was a file with a slash behind its name.
        0 if header.name.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' => EntryKind::File,
        b'S' if header.dialect == Dialect::Gnu => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice(device()?),
        b'4' => EntryKind::BlockDevice(device()?),
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => return Err(EntryError::UnknownType(char::from(other))),
    })
}

fn attributes_of(
    header: &Header<'_>,
    pax: &mut PaxFields,
    limits: &LayerLimits,
) -> Result<Attributes, EntryError> {
    Ok(Attributes {
        mode: header.mode,
        uid: owner(pax.uid.unwrap_or(header.uid))?,
        gid: owner(pax.gid.unwrap_or(header.gid))?,
        mtime: pax.mtime.unwrap_or(Timestamp { secs: header.mtime, nanos: 0 }),
        xattrs: xattrs(take(&mut pax.xattrs), limits.xattr_bytes)?,
    })
}

/// All ids but the highest, which means "no id" to Linux.
fn owner(id: u64) -> Result<u32, EntryError> {
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(EntryError::BadOwner { id })
}

/// Encodes extended attributes. Those of other systems (`com.apple...`) are left out, as `tar` does on Linux.
///
/// What overlayfs would take for its own marks is escaped, so that a layer cannot redirect or hide anything
/// with it; overlayfs (6.7 and later) shows it under the original name.
fn xattrs(list: BTreeMap<Vec<u8>, Vec<u8>>, limit: usize) -> Result<XattrBody, EntryError> {
    let mut body = XattrBody::default();
    let mut bytes = 0usize;
    for (name, value) in list {
        bytes = bytes.saturating_add(name.len()).saturating_add(value.len());
        if bytes > limit {
            return Err(EntryError::XattrsTooLarge { limit });
        }
        let result = match name.strip_prefix(b"trusted.overlay.") {
            Some(rest) => body.push(&[b"trusted.overlay.overlay.", rest].concat(), &value),
            None => body.push(&name, &value),
        };
        match result {
            Ok(()) => {}
            Err(XattrError::UnknownNamespace) => {
                tracing::debug!(name = %EntryName::new(&name), "extended attribute is left out");
            }
            Err(source) => return Err(EntryError::Xattr { name: EntryName::new(&name), source }),
        }
    }
    Ok(body)
}
