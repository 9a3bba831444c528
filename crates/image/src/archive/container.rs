//! A set of named files: a directory, or a tar archive that is read in place.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ImportError;
use super::tarfile::TarIndex;
use crate::ingest::Compression;
use crate::source::LocalKind;
use crate::store::{Store, StoreError, TempFile};

/// Where the files of an image lie.
pub(super) struct Container {
    pub(super) path: PathBuf,
    kind: &'static str,
    form: Form,
}

enum Form {
    Dir,
    /// The temporary file is there where the archive was compressed as a whole.
    Tar {
        file: Arc<File>,
        index: TarIndex,
        _plain: Option<TempFile>,
    },
}

/// A piece of a file.
pub(super) struct Piece {
    file: Arc<File>,
    offset: u64,
    /// Its length.
    pub(super) size: u64,
}

impl Container {
    pub(super) fn open(
        store: &Store,
        kind: LocalKind,
        path: &Path,
        max_bytes: u64,
    ) -> Result<Self, ImportError> {
        let (path, kind_text) = (path.to_owned(), describe(kind));
        let failed = |source| ImportError::Read { path: path.clone(), source };
        if kind == LocalKind::OciDir {
            if !fs::metadata(&path).map_err(failed)?.is_dir() {
                return Err(failed(io::ErrorKind::NotADirectory.into()));
            }
            return Ok(Self { path, kind: kind_text, form: Form::Dir });
        }
        // A FIFO would make the open wait for a writer.
        if !fs::metadata(&path).map_err(failed)?.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
        }
        let mut file = File::open(&path).map_err(failed)?;
        let plain = decompressed(store, &mut file, &path, max_bytes)?;
        let file = match &plain {
            Some(plain) => plain.file().try_clone().map_err(failed)?,
            None => file,
        };
        let index = TarIndex::read(&file, &path)?;
        Ok(Self { path, kind: kind_text, form: Form::Tar { file: Arc::new(file), index, _plain: plain } })
    }

    /// A file by its name in the container. The name must be made of checked parts, or come from the archive.
    pub(super) fn open_file(&self, name: &str) -> Result<Piece, ImportError> {
        let missing =
            || ImportError::Missing { path: self.path.clone(), name: name.to_owned(), kind: self.kind };
        match &self.form {
            Form::Tar { file, index, .. } => {
                let (offset, size) = index.find(name).ok_or_else(missing)?;
                Ok(Piece { file: file.clone(), offset, size })
            }
            Form::Dir => {
                let path = self.path.join(name);
                let failed = |source: io::Error| match source.kind() {
                    io::ErrorKind::NotFound => missing(),
                    _ => ImportError::Read { path: path.clone(), source },
                };
                let size = fs::metadata(&path).map_err(failed)?;
                if !size.is_file() {
                    return Err(missing());
                }
                let file = File::open(&path).map_err(failed)?;
                let size = file.metadata().map_err(failed)?.len();
                Ok(Piece { file: Arc::new(file), offset: 0, size })
            }
        }
    }

    /// A small file, whole.
    pub(super) fn document(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImportError> {
        let piece = self.open_file(name)?;
        if piece.size > limit {
            let (path, name) = (self.path.clone(), name.to_owned());
            return Err(ImportError::TooLarge { path, name, found: piece.size, limit });
        }
        let mut bytes = Vec::new();
        let read = piece.reader().read_to_end(&mut bytes);
        read.map_err(|source| ImportError::Read { path: self.path.join(name), source })?;
        Ok(bytes)
    }
}

fn describe(kind: LocalKind) -> &'static str {
    match kind {
        LocalKind::OciDir => "an OCI image layout",
        LocalKind::OciArchive => "an OCI image archive",
        LocalKind::DockerArchive => "a docker-save archive",
    }
}

/// The content of a compressed archive in a temporary file of the store; none for a plain one.
fn decompressed(
    store: &Store,
    file: &mut File,
    path: &Path,
    max_bytes: u64,
) -> Result<Option<TempFile>, ImportError> {
    let failed = |source| ImportError::Read { path: path.to_owned(), source };
    let mut magic = [0; 4];
    let count = file.read_at(&mut magic, 0).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let buffered = io::BufReader::with_capacity(256 << 10, &mut *file);
    let decoder: Box<dyn Read + '_> = match Compression::of(&magic[..count]) {
        Compression::None => return Ok(None),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(buffered).map_err(failed)?),
    };
    let temp = TempFile::new(&store.tmp_dir())?;
    let mut sink = temp.file();
    let copied = io::copy(&mut decoder.take(max_bytes.saturating_add(1)), &mut sink).map_err(|error| {
        match StoreError::io("write", temp.path(), error) {
            StoreError::Io { source, .. } => failed(source),
            full => full.into(),
        }
    })?;
    if copied > max_bytes {
        let name = "its content".to_owned();
        return Err(ImportError::TooLarge { path: path.to_owned(), name, found: copied, limit: max_bytes });
    }
    Ok(Some(temp))
}

impl Piece {
    /// Reads the piece from its start; independent of other readers.
    pub(super) fn reader(&self) -> impl Read + Send + use<> {
        PieceReader { file: self.file.clone(), at: self.offset, left: self.size }
    }
}

struct PieceReader {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..want], self.at)?;
        if count == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
