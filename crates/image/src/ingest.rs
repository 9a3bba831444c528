//! One layer from its compressed bytes to a verified blob in the store, each byte touched once.
//!
//! ```text
//!            thread 1                                      thread 2
//! source -> digest -> decompress -> diff id -> channel -> tar to EROFS -> temporary file -> commit
//! ```
//!
//! The commit happens only when length, digest and diff id are all as the manifest and the configuration say.
//! Whatever fails, the temporary file goes with its owner, and no lock is held meanwhile (SECURITY-CASES I12).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::mem;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use flate2::bufread::MultiGzDecoder;

use crate::digest::{Digest, Hasher};
use crate::layer::{self, LayerError, LayerLimits, LayerSummary};
use crate::store::{LayerBlob, Store, StoreError, TempFile, is_disk_full};

/// Bytes of one message between the threads, and how many may wait.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_WAITING: usize = 8;

/// Largest zstd window, as log2: 128 MiB, what `zstd --ultra -22` needs.
const ZSTD_WINDOW_LOG: u32 = 27;

/// A layer that was not stored.
#[derive(Debug, thiserror::Error)]
pub enum LayerFailure {
    /// The source gave out.
    #[error("layer cannot be read")]
    Read(#[source] io::Error),
    /// gzip or zstd found an error.
    #[error("layer is not valid {format}")]
    Decompress {
        /// The form of compression.
        format: &'static str,
        /// What the decoder said.
        #[source]
        source: io::Error,
    },
    /// More content than allowed.
    #[error("layer has more than {limit} bytes when unpacked")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// Another length than the manifest says.
    #[error("layer has {found} bytes, but its manifest says {expected}")]
    Size {
        /// From the manifest.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Another digest than the manifest says.
    #[error("layer arrived damaged: its content has digest {found}")]
    Digest {
        /// What came.
        found: Digest,
    },
    /// Another uncompressed digest than the configuration says.
    #[error("unpacked layer has digest {found}, but the image configuration says {expected}")]
    DiffId {
        /// From the configuration.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The tar stream or its entries are bad.
    #[error("layer cannot be converted")]
    Convert(#[from] LayerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a layer must be.
#[derive(Debug, Clone)]
pub(crate) struct LayerSpec {
    /// Digest of the bytes as they come; none where nobody says (docker-archive).
    pub(crate) digest: Option<Digest>,
    /// Number of bytes as they come.
    pub(crate) size: u64,
    /// Digest of the uncompressed bytes.
    pub(crate) diff_id: Digest,
}

/// Reads a layer to its end, and stores it if it is what `spec` says.
pub(crate) fn ingest(
    store: &Store,
    spec: &LayerSpec,
    source: impl Read + Send,
    limits: &LayerLimits,
) -> Result<LayerBlob, LayerFailure> {
    let blob = TempFile::new(&store.tmp_dir())?;
    let (sender, receiver) = sync_channel(CHUNKS_WAITING);
    let (decoded, converted) = thread::scope(|scope| {
        let decoder = scope.spawn(move || decode(source, spec, limits.stream_bytes, &sender));
        let converted = convert(ChunkReader::new(receiver), blob.file(), limits);
        // A panic of the decoder is a bug of ours; it goes on here instead of being lost.
        (decoder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), converted)
    });
    match (decoded, converted) {
        (Err(DecodeEnd::Failed(failure)), _) => Err(failure),
        (_, Err(error)) if is_disk_full(&error) => {
            Err(StoreError::DiskFull { path: store.layer_path(&spec.diff_id) }.into())
        }
        (_, Err(error)) => Err(error.into()),
        (Err(DecodeEnd::Unheard), Ok(_)) => Err(LayerFailure::Read(io::ErrorKind::BrokenPipe.into())),
        (Ok(sums), Ok(summary)) => {
            sums.check(spec)?;
            Ok(store.commit_layer(&spec.diff_id, blob, &summary)?)
        }
    }
}

/// Converts, and hears the stream to its end: padding after the archive belongs to the digests.
fn convert(mut stream: ChunkReader, blob: &File, limits: &LayerLimits) -> Result<LayerSummary, LayerError> {
    let summary = layer::convert(&mut stream, blob, limits)?;
    stream.drain();
    Ok(summary)
}

struct Sums {
    size: u64,
    digest: Option<Digest>,
    diff_id: Digest,
}

impl Sums {
    fn check(self, spec: &LayerSpec) -> Result<(), LayerFailure> {
        if self.size != spec.size {
            return Err(LayerFailure::Size { expected: spec.size, found: self.size });
        }
        match self.digest {
            Some(found) if spec.digest.as_ref() != Some(&found) => {
                return Err(LayerFailure::Digest { found });
            }
            _ => {}
        }
        if self.diff_id != spec.diff_id {
            return Err(LayerFailure::DiffId { expected: spec.diff_id.clone(), found: self.diff_id });
        }
        Ok(())
    }
}

enum DecodeEnd {
    Failed(LayerFailure),
    /// The converter stopped listening; its error is the one that counts.
    Unheard,
}

fn decode(
    source: impl Read,
    spec: &LayerSpec,
    max_bytes: u64,
    sink: &SyncSender<Option<Vec<u8>>>,
) -> Result<Sums, DecodeEnd> {
    let mut raw =
        RawSums { size: 0, hasher: spec.digest.as_ref().map(|digest| Hasher::new(digest.algorithm())) };
    let mut diff_id = Hasher::new(spec.diff_id.algorithm());
    let mut failed = None;
    {
        let hashing = HashingReader { inner: source, sums: &mut raw, failed: &mut failed };
        let mut buffered = BufReader::with_capacity(CHUNK_BYTES, hashing);
        let decoded = send_decoded(&mut buffered, &mut diff_id, max_bytes, sink);
        let drained = decoded.and_then(|()| {
            io::copy(&mut buffered, &mut io::sink())
                .map_err(|error| DecodeEnd::Failed(LayerFailure::Read(error)))
        });
        // A decoder wraps or hides an error of its source; the source's own is the better one.
        if let Err(end) = drained {
            drop(buffered);
            return Err(failed.map_or(end, |error| DecodeEnd::Failed(LayerFailure::Read(error))));
        }
    }
    let sums = Sums { size: raw.size, digest: raw.hasher.map(Hasher::finish), diff_id: diff_id.finish() };
    sink.send(None).map_err(|_| DecodeEnd::Unheard)?;
    Ok(sums)
}

fn send_decoded(
    source: &mut impl BufRead,
    diff_id: &mut Hasher,
    max_bytes: u64,
    sink: &SyncSender<Option<Vec<u8>>>,
) -> Result<(), DecodeEnd> {
    let (format, mut decoder) = open_decoder(source).map_err(DecodeEnd::Failed)?;
    let mut total = 0u64;
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let count = fill(&mut decoder, &mut chunk)
            .map_err(|source| DecodeEnd::Failed(LayerFailure::Decompress { format, source }))?;
        if count == 0 {
            return Ok(());
        }
        chunk.truncate(count);
        total = total.saturating_add(count as u64);
        if total > max_bytes {
            return Err(DecodeEnd::Failed(LayerFailure::TooLarge { limit: max_bytes }));
        }
        diff_id.update(&chunk);
        sink.send(Some(chunk)).map_err(|_| DecodeEnd::Unheard)?;
    }
}

/// Chooses by the first bytes, as containerd does: media types are wrong too often, and the diff id decides
/// anyway whether it was right.
fn open_decoder<'a>(
    source: &'a mut impl BufRead,
) -> Result<(&'static str, Box<dyn Read + 'a>), LayerFailure> {
    let magic = source.fill_buf().map_err(LayerFailure::Read)?;
    Ok(match Compression::of(magic) {
        Compression::Gzip => ("gzip", Box::new(MultiGzDecoder::new(source))),
        Compression::Zstd => {
            let failed = |source| LayerFailure::Decompress { format: "zstd", source };
            let mut decoder = zstd::Decoder::with_buffer(source).map_err(failed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
            ("zstd", Box::new(decoder))
        }
        Compression::None => ("tar", Box::new(source)),
    })
}

/// A form of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Plain, or one that is not known.
    None,
}

impl Compression {
    /// Recognises the form by its magic number.
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or one of the skippable frames (RFC 8878, section 3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Reads until the buffer is full or the stream ends.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match from.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

struct RawSums {
    size: u64,
    hasher: Option<Hasher>,
}

/// Hashes and counts what passes, and keeps a failure of the source.
struct HashingReader<'a, R> {
    inner: R,
    sums: &'a mut RawSums,
    failed: &'a mut Option<io::Error>,
}

impl<R: Read> Read for HashingReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(count) => {
                self.sums.size = self.sums.size.saturating_add(count as u64);
                if let Some(hasher) = &mut self.sums.hasher {
                    hasher.update(&buffer[..count]);
                }
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let kind = error.kind();
                *self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}

/// The converter's end of the channel. `None` is the end of the layer; a channel that closes without it is an
/// error, so that a stream cut short is never taken for a whole one.
struct ChunkReader {
    chunks: Receiver<Option<Vec<u8>>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

impl ChunkReader {
    fn new(chunks: Receiver<Option<Vec<u8>>>) -> Self {
        Self { chunks, current: Vec::new(), at: 0, ended: false }
    }

    fn drain(&mut self) {
        while !self.ended {
            match self.chunks.recv() {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => self.ended = true,
            }
        }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() {
            if self.ended {
                return Ok(0);
            }
            match self.chunks.recv() {
                Ok(Some(chunk)) => {
                    // The old chunk's memory goes here, not at the end of the layer.
                    drop(mem::replace(&mut self.current, chunk));
                    self.at = 0;
                }
                Ok(None) => self.ended = true,
                Err(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = buffer.len().min(self.current.len() - self.at);
        buffer[..count].copy_from_slice(&self.current[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
