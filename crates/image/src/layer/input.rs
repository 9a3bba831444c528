//! The stream: one buffer, a count of bytes, a limit, and the 512-byte grain of tar.

use std::io::{ErrorKind, Read};

use super::error::LayerError;

pub(super) const RECORD: usize = 512;
const BUFFER: usize = 256 << 10;

pub(super) struct Input<R> {
    reader: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes given out.
    offset: u64,
    /// Bytes read.
    read: u64,
    limit: u64,
}

impl<R: Read> Input<R> {
    pub(super) fn new(reader: R, limit: u64) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { reader, buffer, start: 0, end: 0, offset: 0, read: 0, limit }
    }

    /// Position in the stream.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether that many bytes more could come at all.
    pub(super) fn can_hold(&self, len: u64) -> bool {
        self.offset.checked_add(len).is_some_and(|end| end <= self.limit)
    }

    /// The next record; `None` at the end of the stream.
    ///
    /// # Errors
    /// If the stream ends within the record, is too long, or fails.
    pub(super) fn record(&mut self) -> Result<Option<[u8; RECORD]>, LayerError> {
        let mut record = [0; RECORD];
        let mut have = 0;
        while have < RECORD {
            let chunk = self.peek((RECORD - have) as u64)?;
            let len = chunk.len();
            if len == 0 {
                return if have == 0 { Ok(None) } else { Err(self.truncated()) };
            }
            record[have..have + len].copy_from_slice(chunk);
            self.advance(len);
            have += len;
        }
        Ok(Some(record))
    }

    /// Gives the next `len` bytes to `sink`, piece by piece, each once.
    ///
    /// # Errors
    /// If the stream ends before, is too long, or fails; and what `sink` returns.
    pub(super) fn copy(
        &mut self,
        len: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        let mut left = len;
        while left > 0 {
            let chunk = self.peek(left)?;
            let have = chunk.len();
            if have == 0 {
                return Err(self.truncated());
            }
            sink(chunk)?;
            self.advance(have);
            left -= have as u64;
        }
        Ok(())
    }

    /// Skips `len` bytes.
    ///
    /// # Errors
    /// If the stream ends before, is too long, or fails.
    pub(super) fn skip(&mut self, len: u64) -> Result<(), LayerError> {
        self.copy(len, |_| Ok(()))
    }

    /// Skips padding. Go's reader accepts that the stream ends within it, and `umoci insert` writes such layers:
    /// its last file is not padded, and no end mark follows.
    ///
    /// # Errors
    /// If the stream is too long, or fails.
    pub(super) fn skip_padding(&mut self, len: u64) -> Result<(), LayerError> {
        let mut left = len;
        while left > 0 {
            let have = self.peek(left)?.len();
            if have == 0 {
                return Ok(());
            }
            self.advance(have);
            left -= have as u64;
        }
        Ok(())
    }

    /// Reads to the end of the stream, whatever is there, so that its digest covers all of it.
    ///
    /// # Errors
    /// If the stream is too long or fails.
    pub(super) fn drain(&mut self) -> Result<(), LayerError> {
        loop {
            let len = self.peek(u64::MAX)?.len();
            if len == 0 {
                return Ok(());
            }
            self.advance(len);
        }
    }

    pub(super) fn truncated(&self) -> LayerError {
        LayerError::Truncated { offset: self.read }
    }

    /// At least one byte and at most `max`; nothing at the end of the stream.
    fn peek(&mut self, max: u64) -> Result<&[u8], LayerError> {
        if self.start == self.end {
            self.fill()?;
        }
        let len = ((self.end - self.start) as u64).min(max) as usize;
        Ok(&self.buffer[self.start..self.start + len])
    }

    fn advance(&mut self, len: usize) {
        self.start += len;
        self.offset += len as u64;
    }

    fn fill(&mut self) -> Result<(), LayerError> {
        let len = loop {
            match self.reader.read(&mut self.buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other.map_err(LayerError::Read)?,
            }
        };
        (self.start, self.end) = (0, len);
        self.read += len as u64;
        if self.read > self.limit {
            return Err(LayerError::StreamTooLong { limit: self.limit });
        }
        Ok(())
    }
}
