//! The log: standard error, which is containerd's FIFO or a file in the bundle.

use std::io::{self, Write};

use tracing::Level;

/// Starts logging.
pub(crate) fn init(debug: bool) {
    let level = if debug { Level::DEBUG } else { Level::INFO };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        // It would be told on standard error, which is what failed.
        .log_internal_errors(false)
        .with_writer(|| Lossy)
        .init();
}

/// Standard error that never waits and never fails: what a full FIFO does not take is lost.
struct Lossy;

impl Write for Lossy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = rustix::io::write(io::stderr(), bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
