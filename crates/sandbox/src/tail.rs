//! The last bytes of a text that may be endless: a guest's console, a program's standard error.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The newest bytes of what was pushed.
#[derive(Debug)]
pub struct Tail {
    bytes: VecDeque<u8>,
    max: usize,
}

impl Tail {
    /// Keeps at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { bytes: VecDeque::new(), max }
    }

    /// Adds text.
    pub fn push(&mut self, new: &[u8]) {
        let new = &new[new.len().saturating_sub(self.max)..];
        let excess = (self.bytes.len() + new.len()).saturating_sub(self.max);
        self.bytes.drain(..excess);
        self.bytes.extend(new);
    }

    /// What is kept, as harmless lines, newest last.
    pub fn lines(&self, count: usize) -> Vec<String> {
        let (front, back) = self.bytes.as_slices();
        crate::text::last_lines(&[front, back].concat(), count)
    }
}

/// Cuts a program's text into lines for the log; after as many as were allowed it says nothing more.
#[derive(Debug)]
pub struct LogLines {
    partial: Vec<u8>,
    left: u32,
}

impl LogLines {
    /// Longest line in bytes.
    const MAX_LINE: usize = 1024;

    /// Allows so many lines.
    pub fn new(lines: u32) -> Self {
        Self { partial: Vec::new(), left: lines }
    }

    /// Takes text and gives the lines that are whole now, harmless.
    pub fn push(&mut self, text: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in text {
            if self.left == 0 {
                break;
            }
            let ends = *byte == b'\n';
            if !ends {
                self.partial.push(*byte);
            }
            if ends || self.partial.len() >= Self::MAX_LINE {
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned();
                lines.push(crate::text::harmless(&line, Self::MAX_LINE));
                self.left -= 1;
            }
        }
        lines
    }
}

/// Reads of a pipe into a [`Tail`].
#[derive(Debug)]
pub struct TailReader {
    pipe: AsyncFd<OwnedFd>,
    ended: bool,
    /// What was read.
    pub tail: Tail,
}

impl TailReader {
    /// Takes the read end of a pipe.
    ///
    /// # Errors
    /// Outside of a runtime.
    pub fn new(pipe: OwnedFd, max: usize) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self { pipe: crate::sys::watch(pipe, Interest::READABLE)?, ended: false, tail: Tail::new(max) })
    }

    /// Reads once, when there is something, and gives what is new; pends for ever after the end. Safe to cancel.
    pub async fn read(&mut self) -> Vec<u8> {
        if self.ended {
            std::future::pending::<()>().await;
        }
        let mut buffer = [0; 4096];
        let read = |pipe: &OwnedFd| Ok(rustix::io::read(pipe, &mut buffer)?);
        match self.pipe.async_io(Interest::READABLE, read).await {
            Ok(0) | Err(_) => {
                self.ended = true;
                Vec::new()
            }
            Ok(count) => {
                self.tail.push(&buffer[..count]);
                buffer[..count].to_vec()
            }
        }
    }

    /// Reads what is left of a writer that is gone, without waiting; as much as a pipe can hold, no more.
    pub fn drain(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..256 {
            match rustix::io::read(self.pipe.get_ref(), &mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => self.tail.push(&buffer[..count]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a05_log_lines_are_whole_harmless_and_counted() {
        let mut lines = LogLines::new(3);
        assert_eq!(lines.push(b"one\ntw"), ["one"]);
        assert_eq!(lines.push(b"\x1b[0mo\n"), ["tw?[0mo"]);
        assert_eq!(lines.push(&[b'x'; 5000]).len(), 1);
        assert!(lines.push(b"more\n").is_empty());
    }

    proptest! {
        #[test]
        fn v03_tail_is_the_end_of_everything_and_never_longer(
            pushes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10), max in 0usize..50,
        ) {
            let mut tail = Tail::new(max);
            for push in &pushes {
                tail.push(push);
            }
            let all = pushes.concat();
            let kept: Vec<u8> = tail.bytes.iter().copied().collect();
            prop_assert_eq!(&kept[..], &all[all.len().saturating_sub(max)..]);
        }
    }
}
