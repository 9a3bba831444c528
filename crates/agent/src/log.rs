//! Log lines on standard error, which is the guest's console.
//!
//! A subscriber of our own, since what a guest needs is less than any crate gives: no spans, no time stamps (the
//! host has its own), a level that the host sets, escaped text, and a bound on lines a second, because a
//! container can repeat what is logged.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Longest line in bytes.
const MAX_LINE: usize = 512;

/// Lines that may be written in one [`WINDOW`].
const MAX_LINES: u32 = 40;

/// See [`MAX_LINES`].
const WINDOW: Duration = Duration::from_secs(1);

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Level {
    /// Nothing.
    Off,
    /// What has failed.
    Error,
    /// And what someone should look at.
    Warn,
    /// And changes of state.
    Info,
    /// And each request.
    Debug,
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Warn as u8);

impl FromStr for Level {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "" | "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            _ => Err(()),
        }
    }
}

/// Sets the level for all lines from now on.
pub(crate) fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Makes this the program's log. A second call changes nothing.
pub(crate) fn install() {
    let _ = tracing::subscriber::set_global_default(Console::default());
}

/// The console and how much of its budget is used.
#[derive(Debug, Default)]
struct Console {
    budget: Mutex<Budget>,
}

#[derive(Debug, Default)]
struct Budget {
    window: Option<Instant>,
    lines: u32,
    dropped: u64,
}

impl Budget {
    /// Whether a line may be written, and how many were dropped before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.window.is_none_or(|window| now.duration_since(window) >= WINDOW) {
            self.window = Some(now);
            self.lines = 0;
        }
        if self.lines >= MAX_LINES {
            self.dropped += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

impl Subscriber for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        rank(*metadata.level()) <= LEVEL.load(Ordering::Relaxed) && metadata.is_event()
    }

    fn event(&self, event: &Event<'_>) {
        let Ok(mut budget) = self.budget.lock() else { return };
        let Some(dropped) = budget.take(Instant::now()) else { return };
        if dropped > 0 {
            write_line(&format!("nacre-agent: {dropped} lines dropped\n"));
        }
        write_line(&line(event));
    }

    fn register_callsite(&self, _: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        // The level changes at run time.
        tracing::subscriber::Interest::sometimes()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn rank(level: tracing::Level) -> u8 {
    match level {
        tracing::Level::ERROR => Level::Error as u8,
        tracing::Level::WARN => Level::Warn as u8,
        tracing::Level::INFO => Level::Info as u8,
        _ => Level::Debug as u8,
    }
}

fn write_line(line: &str) {
    // There is nowhere to report a console that fails.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn line(event: &Event<'_>) -> String {
    let mut line = Line(format!("nacre-agent: {}:", event.metadata().level()));
    event.record(&mut line);
    let mut line = line.0;
    line.push('\n');
    line
}

/// Text that grows to [`MAX_LINE`] and takes no control characters (A05).
struct Line(String);

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.0.len() >= MAX_LINE {
                break;
            }
            if character.is_control() || !(character.is_ascii() || character.is_alphanumeric()) {
                self.0.extend(character.escape_unicode());
            } else {
                self.0.push(character);
            }
        }
        Ok(())
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self, " {value:?}"),
            name => write!(self, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self, " {}={value}", field.name());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let _ = write!(self, " {}={value}", field.name());
        let mut next = value.source();
        while let Some(cause) = next {
            let _ = write!(self, ": {cause}");
            next = cause.source();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a05_control_characters_are_escaped_and_length_is_bounded() {
        let mut line = Line(String::new());
        line.write_str("a\x1b[2Jb\nc\u{202e}").unwrap();
        assert_eq!(line.0, r"a\u{1b}[2Jb\u{a}c\u{202e}");
        line.write_str(&"x".repeat(1 << 20)).unwrap();
        assert_eq!(line.0.len(), MAX_LINE);
    }

    #[test]
    fn lines_beyond_the_budget_are_counted_not_written() {
        let mut budget = Budget::default();
        let now = Instant::now();
        let written = (0..MAX_LINES + 7).filter(|_| budget.take(now).is_some()).count();
        assert_eq!(written, MAX_LINES as usize);
        assert_eq!(budget.take(now + WINDOW), Some(7));
    }
}
