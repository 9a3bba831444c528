//! The serial port (16550A at 0x3f8): where kernel messages and panics go.
//!
//! Only output: nothing is ever received, so no buffer can grow (V03). Text goes to the owner's pipe a line at a time,
//! without ever blocking a vCPU; what the pipe does not take is counted and gone (S33).

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// First I/O port.
pub const FIRST_PORT: u16 = 0x3f8;
/// Last I/O port.
pub const LAST_PORT: u16 = 0x3ff;

/// Longest piece of a line that waits for its end.
const MAX_PENDING: usize = 512;

/// The interrupt line of the port.
pub struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        // A full counter means that an interrupt is pending already.
        match self.0.write(1) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

/// The owner's end of the port: a pipe that does not block.
struct Output {
    pipe: File,
    pending: Vec<u8>,
    dropped: Arc<AtomicU64>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.pending.push(*byte);
            if *byte == b'\n' || self.pending.len() >= MAX_PENDING {
                self.send();
            }
        }
        Ok(bytes.len())
    }

    /// vm-superio flushes after each byte; lines are sent by `write`.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output {
    fn send(&mut self) {
        let mut rest = self.pending.as_slice();
        while !rest.is_empty() {
            match self.pipe.write(rest) {
                Ok(0) => break,
                Ok(taken) => rest = rest.get(taken..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Full, or nobody reads any more: the guest must not notice.
                Err(_) => break,
            }
        }
        self.dropped.fetch_add(rest.len() as u64, Ordering::Relaxed);
        self.pending.clear();
    }
}

/// The port.
pub struct SerialPort(Serial<Line, NoEvents, Output>);

impl SerialPort {
    /// A port that writes to `pipe`, which must not block, and counts what it drops.
    pub fn new(line: EventFd, pipe: File, dropped: Arc<AtomicU64>) -> Self {
        let output = Output { pipe, pending: Vec::with_capacity(MAX_PENDING), dropped };
        Self(Serial::new(Line(line), output))
    }

    /// The guest reads a register.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// The guest writes a register.
    pub fn write(&mut self, offset: u8, value: u8) {
        // The only errors are those of the interrupt line, whose event descriptor lives as long as the port.
        let _ = self.0.write(offset, value);
    }

    /// Sends a line that has not ended: the machine is about to.
    pub fn flush(&mut self) {
        self.0.writer_mut().send();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use std::io::Read;

    const DATA: u8 = 0;
    const LINE_STATUS: u8 = 5;

    fn port() -> (SerialPort, File, Arc<AtomicU64>) {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        let dropped = Arc::new(AtomicU64::new(0));
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (SerialPort::new(line, File::from(writer), Arc::clone(&dropped)), File::from(reader), dropped)
    }

    fn text(reader: &mut File) -> String {
        let mut buffer = [0; 4096];
        let count = reader.read(&mut buffer).unwrap_or(0);
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    #[test]
    fn line_is_sent_when_it_ends() {
        let (mut port, mut reader, _) = port();
        b"boot".iter().for_each(|byte| port.write(DATA, *byte));
        assert_eq!(text(&mut reader), "");
        port.write(DATA, b'\n');
        assert_eq!(text(&mut reader), "boot\n");
    }

    #[test]
    fn flush_sends_the_rest() {
        let (mut port, mut reader, _) = port();
        port.write(DATA, b'x');
        port.flush();
        assert_eq!(text(&mut reader), "x");
    }

    #[test]
    fn s33_unread_output_is_dropped_and_counted() {
        let (mut port, _reader, dropped) = port();
        let sent = 1 << 20;
        (0..sent).for_each(|_| port.write(DATA, b'a'));
        assert!(dropped.load(Ordering::Relaxed) > sent / 2);
    }

    #[test]
    fn v03_port_never_has_input() {
        let (mut port, _reader, _) = port();
        assert_eq!(port.read(LINE_STATUS) & 1, 0);
    }
}
