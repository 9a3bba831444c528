//! A log file of JSON lines, in the form of Docker's json-file driver.

use std::fs::File;
use std::io::{self, Write};

use nacre_protocol::task::LogLine;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest line in bytes; a longer one becomes several records, all but the last without a newline.
const MAX_LINE: usize = 16 * 1024;

/// One stream's writer; several may append to one file.
#[derive(Debug)]
pub(super) struct JsonLines {
    file: File,
    stream: &'static str,
    partial: Vec<u8>,
}

impl JsonLines {
    pub(super) fn new(file: File, stream: &'static str) -> Self {
        Self { file, stream, partial: Vec::new() }
    }

    /// Writes the lines that are whole, keeps the rest.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let now = OffsetDateTime::now_utc();
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let room = MAX_LINE.saturating_sub(self.partial.len()).max(1);
            let window = &bytes[..bytes.len().min(room)];
            let newline = window.iter().position(|byte| *byte == b'\n');
            let taken = newline.map_or(window.len(), |at| at + 1);
            self.partial.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if newline.is_some() {
                self.record(self.partial.len(), now, &mut records)?;
            } else if self.partial.len() >= MAX_LINE {
                self.record(whole_characters(&self.partial), now, &mut records)?;
            }
        }
        // One write for all, so that records of two streams never mix within a line.
        self.file.write_all(&records)
    }

    /// Writes a last line that has no newline.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.partial.is_empty() {
            return Ok(());
        }
        let mut record = Vec::new();
        self.record(self.partial.len(), OffsetDateTime::now_utc(), &mut record)?;
        self.file.write_all(&record)
    }

    fn record(&mut self, length: usize, now: OffsetDateTime, out: &mut Vec<u8>) -> io::Result<()> {
        let line = LogLine {
            log: String::from_utf8_lossy(&self.partial[..length]).into_owned(),
            stream: self.stream.to_owned(),
            time: now.format(&Rfc3339).map_err(io::Error::other)?,
        };
        self.partial.drain(..length);
        serde_json::to_writer(&mut *out, &line)?;
        out.push(b'\n');
        Ok(())
    }
}

/// Length without a character that is cut at the end.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(pushes: &[&[u8]]) -> Vec<LogLine> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut lines = JsonLines::new(file.reopen().unwrap(), "stdout");
        for push in pushes {
            lines.push(push).unwrap();
        }
        lines.finish().unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn line_in_two_pushes_is_one_record() {
        let lines = write(&[b"hel", b"lo\nwor", b"ld"]);
        assert_eq!(lines.iter().map(|line| line.log.as_str()).collect::<Vec<_>>(), ["hello\n", "world"]);
        assert_eq!(lines[0].stream, "stdout");
        assert!(lines[0].time.ends_with('Z') && lines[0].time.contains('T'));
    }

    #[test]
    fn long_line_is_split_between_characters() {
        let text = "ä".repeat(MAX_LINE);
        let lines = write(&[b"x", text.as_bytes()]);
        assert!(lines.iter().all(|line| line.log.len() <= MAX_LINE && !line.log.contains('\u{fffd}')));
        assert_eq!(lines.iter().map(|line| line.log.as_str()).collect::<String>(), format!("x{text}"));
    }

    proptest! {
        #[test]
        fn records_hold_every_byte_of_text(pushes in proptest::collection::vec("[a-zä\n]{0,40}", 0..8)) {
            let bytes: Vec<&[u8]> = pushes.iter().map(|push| push.as_bytes()).collect();
            let lines = write(&bytes);
            prop_assert_eq!(lines.iter().map(|line| line.log.as_str()).collect::<String>(), pushes.concat());
        }
    }
}
