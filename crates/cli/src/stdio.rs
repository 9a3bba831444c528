//! The caller's standard streams, joined to the container's by fifos, as containerd's clients do.
//!
//! ```text
//! stdin  --thread--> fifo --> shim        stdout, stderr <--thread-- fifo <-- shim
//! ```
//!
//! The readers are opened before the shim knows of the fifos, so that its open for writing never waits; a copy ends
//! when the shim has closed its end, which it does after the last byte.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use rustix::termios::{OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::oneshot;

use crate::detach::{DetachKeys, Filter, Typed};

/// Bytes moved by one call.
const CHUNK: usize = 1 << 20;

/// A stream that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    #[error("cannot make the fifo {path}")]
    Fifo { path: PathBuf, source: io::Error },
    #[error("the input device is not a terminal: leave out -t, or run from a terminal")]
    NoTerminal,
    #[error("cannot set the terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Fifos of one process; the files are removed when dropped.
pub(crate) struct Fifos {
    stdin: Option<PathBuf>,
    stdout: PathBuf,
    stderr: Option<PathBuf>,
}

impl Fifos {
    /// Makes the fifos in `dir`; a terminal has no stderr of its own.
    pub(crate) fn make(dir: &Path, prefix: &str, stdin: bool, tty: bool) -> Result<Self, StdioError> {
        let path = |name: &str| dir.join(format!("{prefix}{name}"));
        let fifos = Self {
            stdin: stdin.then(|| path("stdin")),
            stdout: path("stdout"),
            stderr: (!tty).then(|| path("stderr")),
        };
        for path in fifos.stdin.iter().chain([&fifos.stdout]).chain(&fifos.stderr) {
            nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)
                .map_err(|errno| StdioError::Fifo { path: path.clone(), source: errno.into() })?;
        }
        Ok(fifos)
    }

    /// Paths for the Task API; empty where there is none.
    pub(crate) fn paths(&self) -> [String; 3] {
        let text = |path: Option<&PathBuf>| path.map_or_else(String::new, |path| path.display().to_string());
        [text(self.stdin.as_ref()), text(Some(&self.stdout)), text(self.stderr.as_ref())]
    }

    /// Opens the ends that this process reads. Call it before the shim is told of the paths.
    pub(crate) fn open_readers(&self) -> Result<Readers, StdioError> {
        let open = |path: &PathBuf| {
            File::options()
                .read(true)
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(path)
                .map_err(|source| StdioError::Fifo { path: path.clone(), source })
        };
        Ok(Readers { stdout: open(&self.stdout)?, stderr: self.stderr.as_ref().map(open).transpose()? })
    }

    /// Starts to copy this process's stdin, on a terminal until its keys are typed; the receiver is told of its end.
    pub(crate) fn copy_stdin(
        &self,
        keys: Option<DetachKeys>,
    ) -> Result<Option<oneshot::Receiver<StdinEnd>>, StdioError> {
        let Some(path) = self.stdin.clone() else { return Ok(None) };
        let (ended, receiver) = oneshot::channel();
        let copy_all = move || {
            // The open waits for the shim's reader. An error here or in the copy means that the container no
            // longer reads, which is the end of the input as far as it goes.
            let copied = File::options().write(true).open(&path).and_then(|fifo| {
                let stdin = io::stdin().as_fd().try_clone_to_owned()?;
                match keys {
                    Some(keys) => copy_typed(stdin.into(), fifo, Filter::new(keys)),
                    None => copy(Ok(stdin), fifo.into()).map(|()| StdinEnd::Eof),
                }
            });
            let _ = ended.send(copied.unwrap_or(StdinEnd::Eof));
        };
        thread::Builder::new().name("stdin".into()).spawn(copy_all).map_err(StdioError::Thread)?;
        Ok(Some(receiver))
    }
}

/// Why nothing more comes from stdin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StdinEnd {
    /// Its end, or that of its reader.
    Eof,
    /// The detach keys were typed.
    Detached,
}

impl Drop for Fifos {
    fn drop(&mut self) {
        for path in self.stdin.iter().chain([&self.stdout]).chain(&self.stderr) {
            // Gone already where the whole bundle was removed.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The ends that this process reads.
pub(crate) struct Readers {
    stdout: File,
    stderr: Option<File>,
}

impl Readers {
    /// Starts to copy to this process's stdout and stderr. Call it when the shim has opened its ends.
    pub(crate) fn start(self) -> Result<Copies, StdioError> {
        let mut threads = vec![spawn("stdout", self.stdout, io::stdout().as_fd().try_clone_to_owned())?];
        if let Some(stderr) = self.stderr {
            threads.push(spawn("stderr", stderr, io::stderr().as_fd().try_clone_to_owned())?);
        }
        Ok(Copies(threads))
    }
}

/// Running copies of stdout and stderr.
pub(crate) struct Copies(Vec<JoinHandle<io::Result<()>>>);

impl Copies {
    /// Waits for the last byte. A failed write (a closed pipe, a full disk) is told, not lost.
    pub(crate) fn finish(self) -> io::Result<()> {
        let mut result = Ok(());
        for thread in self.0 {
            let copied = thread.join().unwrap_or_else(|_| Err(io::Error::other("a copying thread failed")));
            if copied.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe) {
                result = copied;
            }
        }
        result
    }
}

fn spawn(name: &str, from: File, to: io::Result<OwnedFd>) -> Result<JoinHandle<io::Result<()>>, StdioError> {
    // Blocking from here on: the reader has a thread of its own.
    fcntl(&from, FcntlArg::F_SETFL(OFlag::empty())).map_err(|errno| StdioError::Thread(errno.into()))?;
    thread::Builder::new()
        .name(name.into())
        .spawn(move || copy(Ok(from.into()), to?))
        .map_err(StdioError::Thread)
}

/// Moves bytes until the end of `from`: by splice where the kernel can, else through a buffer.
fn copy(from: io::Result<OwnedFd>, to: OwnedFd) -> io::Result<()> {
    let from = from?;
    if !takes_pages(&to) {
        return copy_through_buffer(from.into(), to.into());
    }
    loop {
        match rustix::pipe::splice(&from, None, &to, None, CHUNK, SpliceFlags::empty()) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            // Files opened for appending, and streams where neither side is a pipe.
            Err(Errno::INVAL) => return copy_through_buffer(from.into(), to.into()),
            Err(Errno::AGAIN) => wait_for(&from, &to)?,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Pipes, files and sockets take what splice(2) moves. Some character devices say that they do and lose it (the ports
/// of virtio-console among them).
fn takes_pages(to: &OwnedFd) -> bool {
    let kind = rustix::fs::fstat(to).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
    use rustix::fs::FileType;
    matches!(kind, Ok(FileType::Fifo | FileType::RegularFile | FileType::Socket))
}

/// One of the two is non-blocking because another process that shares it made it so.
fn wait_for(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    poll(&mut [PollFd::new(from, PollFlags::IN)], None)?;
    poll(&mut [PollFd::new(to, PollFlags::OUT)], None)?;
    Ok(())
}

fn copy_through_buffer(mut from: File, mut to: File) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_readable(&from)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        write_all(&mut to, &buffer[..count])?;
    }
}

/// Moves what is typed, without the detach keys.
fn copy_typed(mut from: File, mut to: File, mut filter: Filter) -> io::Result<StdinEnd> {
    let mut buffer = [0; 4096];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_readable(&from)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        match filter.push(buffer.get(..count).unwrap_or_default()) {
            Typed::Input(bytes) => write_all(&mut to, &bytes)?,
            Typed::Detached(bytes) => {
                // A reader that is gone does not keep anybody from leaving.
                let _ = write_all(&mut to, &bytes);
                return Ok(StdinEnd::Detached);
            }
        }
    }
    write_all(&mut to, &filter.finish())?;
    Ok(StdinEnd::Eof)
}

fn wait_readable(from: &File) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    poll(&mut [PollFd::new(from, PollFlags::IN)], None)?;
    Ok(())
}

fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(&*to, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Raw mode of the caller's terminal; set back when dropped.
pub(crate) struct RawTerminal(Termios);

impl RawTerminal {
    /// Refuses where stdin is no terminal; a terminal without input from us is left alone.
    pub(crate) fn enter(interactive: bool) -> Result<Option<Self>, StdioError> {
        if !interactive {
            return Ok(None);
        }
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Err(StdioError::NoTerminal);
        }
        let saved = tcgetattr(&stdin).map_err(|errno| StdioError::Terminal(errno.into()))?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(|errno| StdioError::Terminal(errno.into()))?;
        Ok(Some(Self(saved)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done for a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Columns and rows of the caller's terminal, where it has one.
pub(crate) fn window() -> Option<(u32, u32)> {
    let Winsize { ws_col, ws_row, .. } =
        tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (ws_col > 0 && ws_row > 0).then(|| (ws_col.into(), ws_row.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_moves_every_byte_from_fifo_to_file() {
        let dir = tempfile::tempdir().unwrap();
        let fifos = Fifos::make(dir.path(), "", false, true).unwrap();
        let readers = fifos.open_readers().unwrap();
        let path = fifos.paths()[1].clone();
        let mut writer = File::options().write(true).open(path).unwrap();
        let target = dir.path().join("out");
        let thread = spawn("test", readers.stdout, Ok(File::create(&target).unwrap().into())).unwrap();
        let data: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        writer.write_all(&data).unwrap();
        drop(writer);
        thread.join().unwrap().unwrap();
        assert_eq!(std::fs::read(target).unwrap(), data);
    }

    #[test]
    fn typing_ends_at_the_detach_keys_and_nothing_of_them_is_passed_on() {
        let (from, mut keyboard) = io::pipe().unwrap();
        let (mut process, to) = io::pipe().unwrap();
        let filter = Filter::new("ctrl-p,ctrl-q".parse().unwrap());
        let copying = thread::spawn(move || {
            copy_typed(File::from(OwnedFd::from(from)), File::from(OwnedFd::from(to)), filter).unwrap()
        });
        keyboard.write_all(b"top\x10\n").unwrap();
        keyboard.write_all(b"x\x10\x11never").unwrap();
        // The keyboard is still there: only the keys end the copying.
        assert_eq!(copying.join().unwrap(), StdinEnd::Detached);
        let mut got = Vec::new();
        process.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"top\x10\nx");
    }

    #[test]
    fn end_of_typing_gives_what_was_held_back() {
        let (from, mut keyboard) = io::pipe().unwrap();
        let (mut process, to) = io::pipe().unwrap();
        keyboard.write_all(b"a\x10").unwrap();
        drop(keyboard);
        let filter = Filter::new("ctrl-p,ctrl-q".parse().unwrap());
        let end = copy_typed(File::from(OwnedFd::from(from)), File::from(OwnedFd::from(to)), filter).unwrap();
        let mut got = Vec::new();
        process.read_to_end(&mut got).unwrap();
        assert_eq!((end, got.as_slice()), (StdinEnd::Eof, b"a\x10".as_slice()));
    }

    #[test]
    fn fifos_are_removed_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        drop(Fifos::make(dir.path(), "x-", true, false).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
