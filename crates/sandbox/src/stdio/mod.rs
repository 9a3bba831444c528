//! Standard streams of a process: from the caller's FIFOs, files or logging program to raw streams of the guest.
//!
//! ```text
//! caller's FIFO  --splice-->  stream (token)  --vsock-->  stdin of the process
//! caller's FIFO  <--splice--  stream (token)  <--vsock--  stdout, stderr (a terminal has stdout alone)
//! ```
//!
//! Opening order: the caller has its ends open before it asks for the process. An output FIFO is opened for reading
//! too, so that the opening never waits and a caller that comes back (attach) finds it alive. A writer of the stdin
//! FIFO is held open until CloseIO, so that a caller may leave and come back without the process seeing the end.
//! The stdin FIFO is opened when the process starts, not before: until then a caller's copying waits, and it cannot
//! come to its end, and ask for CloseIO, before it has the answer to Create that it needs for that.
//!
//! A caller that leaves for good ([`Streams::redirect`]) has its outputs go elsewhere: a FIFO that nobody reads would
//! fill and stop the process.
//!
//! An exit is reported when both outputs have reached their end of file and the last byte is in the caller's hands, out of its
//! FIFO (containerd's client closes that when it hears of the exit, whatever is in it); or, where nothing moves for [`STALL`],
//! because a reader has stopped or a grandchild holds the stream open. For a reader that has left (containerd while it restarts) it
//! does not wait: what is in the FIFO then stays there until somebody has come back and taken it, or the process is deleted.

mod copy;
mod drain;
mod guest_stream;
mod json_lines;
mod logger;
mod target;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nacre_protocol::stream::Token;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use copy::Progress;
pub use drain::{Drain, STALL};
pub use guest_stream::Dialer;
pub use logger::LogSource;
pub use target::{Target, TargetError};

use crate::agent::Stdio;
use crate::sys;
use drain::{Running, Told};
use json_lines::JsonLines;
use logger::Logger;

/// Size of the caller's output FIFOs: fewer wake-ups for the same bytes. Best effort.
const FIFO_BYTES: usize = 256 * 1024;

/// Standard streams that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// A form that is not known.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The caller's end cannot be opened.
    #[error("cannot open {path} for {stream}")]
    Open {
        /// The path.
        path: PathBuf,
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A logging program did not start.
    #[error("logging program {path} did not start")]
    Logger {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No random bytes for a stream's name.
    #[error("cannot name a stream")]
    Token(#[source] io::Error),
}

/// What the caller of the Task API asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StdioRequest {
    /// The process has a terminal: stdin and stdout are its two directions.
    pub terminal: bool,
    /// Path of a FIFO, or empty.
    pub stdin: String,
    /// Any form of [`Target`].
    pub stdout: String,
    /// Any form of [`Target`].
    pub stderr: String,
}

/// Where an output goes.
#[derive(Debug)]
enum Sink {
    Pipe(AsyncFd<OwnedFd>),
    File(File),
    Json(JsonLines),
}

/// An output: its place, and its name in the guest.
struct Output {
    stream: &'static str,
    sink: Sink,
    /// Others can open it too.
    has_name: bool,
    token: Token,
}

/// The caller's ends, open, with names for the guest's.
pub struct Opened {
    terminal: bool,
    stdin: Option<(PathBuf, Token)>,
    outputs: Vec<Output>,
    logger: Option<Logger>,
}

/// Streams that run.
#[derive(Debug, Default)]
pub struct Streams {
    stdin: Option<Stdin>,
    outputs: Vec<Running>,
    /// Outputs that have ended, with bytes that nobody was there to take.
    held: Vec<Running>,
    /// For each output into a FIFO: hands its task another place, once.
    redirects: Vec<(&'static str, oneshot::Sender<Option<Sink>>)>,
    progress: Arc<Progress>,
    logger: Option<Logger>,
}

/// A process's stdin on the host's side.
#[derive(Debug)]
struct Stdin {
    path: PathBuf,
    task: JoinHandle<()>,
    /// Hands the FIFO to the task, once.
    reader: Option<oneshot::Sender<AsyncFd<OwnedFd>>>,
    /// Keeps the FIFO from ending.
    writer: Option<OwnedFd>,
    /// The caller writes no more.
    closed: bool,
}

/// Opens the caller's outputs, and checks its input.
///
/// # Errors
/// See [`StdioError`].
pub async fn open(request: &StdioRequest, source: LogSource<'_>) -> Result<Opened, StdioError> {
    let stdin = match Target::parse(&request.stdin)? {
        Target::None => None,
        Target::Fifo(path) => {
            check_stdin(&path)?;
            Some((path, new_token()?))
        }
        _ => return Err(TargetError::Scheme(crate::text::harmless(&request.stdin, 256)).into()),
    };
    let mut opened = Opened { terminal: request.terminal, stdin, outputs: Vec::new(), logger: None };
    let stderr = if request.terminal { "" } else { &request.stderr };
    for (stream, text) in [("stdout", request.stdout.as_str()), ("stderr", stderr)] {
        let target = Target::parse(text)?;
        if let Target::Binary { path, args } = &target
            && opened.logger.is_none()
        {
            let logger = Logger::start(path, args, source).await;
            opened.logger = Some(logger.map_err(|source| StdioError::Logger { path: path.clone(), source })?);
        }
        if let Some(sink) = open_sink(&target, stream, opened.logger.as_mut())? {
            let has_name = matches!(target, Target::Fifo(_));
            opened.outputs.push(Output { stream, sink, has_name, token: new_token()? });
        }
    }
    Ok(opened)
}

fn new_token() -> Result<Token, StdioError> {
    guest_stream::new_token().map_err(StdioError::Token)
}

fn check_stdin(path: &Path) -> Result<(), StdioError> {
    let failed = |source| StdioError::Open { path: path.to_owned(), stream: "stdin", source };
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_fifo() => Ok(()),
        Ok(_) => Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a FIFO"))),
        Err(error) => Err(failed(error)),
    }
}

/// Both ends of the FIFO, the reader's first: a writer that does not wait needs one.
fn open_stdin(path: &Path) -> io::Result<(AsyncFd<OwnedFd>, OwnedFd)> {
    let flags = libc::O_NONBLOCK;
    let reader = File::options().read(true).custom_flags(flags).open(path)?;
    let writer = File::options().write(true).custom_flags(flags).open(path)?;
    Ok((sys::watch(reader.into(), Interest::READABLE)?, writer.into()))
}

fn open_sink(
    target: &Target,
    stream: &'static str,
    logger: Option<&mut Logger>,
) -> Result<Option<Sink>, StdioError> {
    let path = match target {
        Target::None => return Ok(None),
        Target::Fifo(path) | Target::File(path) | Target::JsonFile(path) | Target::Binary { path, .. } => {
            path
        }
    };
    let failed = |source| StdioError::Open { path: path.clone(), stream, source };
    let sink = match target {
        Target::None => return Ok(None),
        Target::Fifo(path) => open_output_fifo(path).map_err(failed)?,
        Target::File(path) => Sink::File(append_to(path).map_err(failed)?),
        Target::JsonFile(path) => Sink::Json(JsonLines::new(append_to(path).map_err(failed)?, stream)),
        Target::Binary { .. } => {
            let pipe = logger.and_then(|logger| match stream {
                "stdout" => logger.stdout.take(),
                _ => logger.stderr.take(),
            });
            let Some(pipe) = pipe else { return Ok(None) };
            watch_pipe(pipe).map_err(failed)?
        }
    };
    Ok(Some(sink))
}

fn open_output_fifo(path: &Path) -> io::Result<Sink> {
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if is_fifo(&file)? { watch_pipe(file.into()) } else { Ok(Sink::File(file)) }
}

fn watch_pipe(pipe: OwnedFd) -> io::Result<Sink> {
    rustix::io::ioctl_fionbio(&pipe, true)?;
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, FIFO_BYTES);
    Ok(Sink::Pipe(sys::watch(pipe, Interest::WRITABLE)?))
}

/// With the directories that it needs, as containerd's own shim makes them.
fn append_to(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    File::options().append(true).create(true).mode(0o640).open(path)
}

fn is_fifo(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_fifo())
}

impl Opened {
    /// The streams' names, as the agent gets them.
    pub fn for_agent(&self, size: Option<(u32, u32)>) -> Stdio {
        let token = |stream| {
            let output = self.outputs.iter().find(|output| output.stream == stream);
            output.map(|output| output.token.0.to_vec()).unwrap_or_default()
        };
        let (columns, rows) = size.unwrap_or_default();
        Stdio {
            terminal: self.terminal,
            stdin: self.stdin.as_ref().map(|(_, token)| token.0.to_vec()).unwrap_or_default(),
            stdout: token("stdout"),
            stderr: token("stderr"),
            columns,
            rows,
            ..Default::default()
        }
    }

    /// Opens the guest's ends and begins to copy, each stream in a task of its own.
    pub fn connect(self, dialer: &Dialer) -> Streams {
        let progress = Arc::new(Progress::default());
        let mut streams = Streams::default();
        streams.progress.clone_from(&progress);
        streams.logger = self.logger;
        if let Some((path, token)) = self.stdin {
            let (dialer, terminal) = (dialer.clone(), self.terminal);
            let (sender, reader) = oneshot::channel();
            let task = tokio::spawn(async move {
                log_failure("stdin", copy_stdin(&dialer, reader, token, terminal).await);
            });
            streams.stdin = Some(Stdin { path, task, reader: Some(sender), writer: None, closed: false });
        }
        for output in self.outputs {
            let (dialer, progress) = (dialer.clone(), progress.clone());
            let (sender, redirected) = oneshot::channel();
            streams.redirects.push((output.stream, sender));
            let (tell, done) = oneshot::channel();
            let ended = Arc::new(AtomicBool::new(false));
            let told = Told { ended: ended.clone(), done: tell };
            let task = tokio::spawn(async move {
                let stream = output.stream;
                log_failure(stream, copy_output(&dialer, output, redirected, &progress, told).await);
            });
            streams.outputs.push(Running { task, ended, done });
        }
        streams
    }
}

fn log_failure(stream: &'static str, result: io::Result<()>) {
    // A reset and a broken pipe are how either side says that it reads no further.
    let expected = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof];
    if let Err(error) = result
        && !expected.contains(&error.kind())
    {
        tracing::warn!(stream, error = &error as &dyn std::error::Error, "stream ended early");
    }
}

async fn copy_stdin(
    dialer: &Dialer,
    reader: oneshot::Receiver<AsyncFd<OwnedFd>>,
    token: Token,
    terminal: bool,
) -> io::Result<()> {
    // The agent waits for the stream when it makes the process; the caller's end comes when that starts.
    let guest = dialer.open(token, Interest::READABLE | Interest::WRITABLE).await?;
    let Ok(reader) = reader.await else { return Ok(()) };
    let progress = Progress::default();
    tokio::select! {
        result = copy::splice_all(&reader, &guest, &progress) => result?,
        // The process has closed its end: what the caller still writes has no reader.
        closed = closed_by_reader(&guest) => return closed,
    }
    if !terminal {
        // A terminal does not end with its input; the process reads until it is hung up.
        rustix::net::shutdown(guest.get_ref(), rustix::net::Shutdown::Write)?;
    }
    closed_by_reader(&guest).await
}

/// Waits until the guest has closed a stream that only the host writes to.
async fn closed_by_reader(guest: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let read = |fd: &OwnedFd| Ok(rustix::io::read(fd, &mut [0; 16])?);
    // Bytes in this direction mean nothing; the end does.
    while guest.async_io(Interest::READABLE, read).await? != 0 {}
    Ok(())
}

async fn copy_output(
    dialer: &Dialer,
    output: Output,
    redirected: oneshot::Receiver<Option<Sink>>,
    progress: &Progress,
    told: Told,
) -> io::Result<()> {
    let guest = dialer.open(output.token, Interest::READABLE).await?;
    let Sink::Pipe(pipe) = output.sink else { return copy_to(&guest, Some(output.sink), progress).await };
    let sink = tokio::select! {
        result = copy::splice_all(&guest, &pipe, progress) => {
            result?;
            told.ended.store(true, Ordering::Relaxed);
            // However long its reader takes, the guest's end is not needed.
            drop(guest);
            return match copy::wait_until_taken(pipe, progress).await? {
                // To a pipe without a name nobody can come back.
                Some(left) if output.has_name => {
                    let _ = told.done.send(());
                    copy::hold_until_taken(left).await
                }
                _ => Ok(()),
            };
        }
        // A splice that is given up has moved all or nothing, so no byte is lost between the two.
        Ok(sink) = redirected => sink,
    };
    // The caller has what was written until here, and then the end of the FIFO.
    drop(pipe);
    copy_to(&guest, sink, progress).await
}

async fn copy_to(guest: &AsyncFd<OwnedFd>, sink: Option<Sink>, progress: &Progress) -> io::Result<()> {
    match sink {
        None => copy::read_all(guest, progress, |_| Ok(())).await,
        Some(Sink::Pipe(pipe)) => copy::splice_all(guest, &pipe, progress).await,
        Some(Sink::File(mut file)) => {
            copy::read_all(guest, progress, |bytes| io::Write::write_all(&mut file, bytes)).await
        }
        Some(Sink::Json(mut lines)) => {
            let copied = copy::read_all(guest, progress, |bytes| lines.push(bytes)).await;
            copied.and(lines.finish())
        }
    }
}

impl Streams {
    /// Opens the caller's stdin, for a process that is about to start.
    ///
    /// # Errors
    /// [`StdioError::Open`].
    pub fn open_stdin(&mut self) -> Result<(), StdioError> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        let Some(sender) = stdin.reader.take() else { return Ok(()) };
        let failed = |source| StdioError::Open { path: stdin.path.clone(), stream: "stdin", source };
        let (reader, writer) = open_stdin(&stdin.path).map_err(failed)?;
        // Where the caller has nothing to write, the FIFO has had its one writer here, and is at its end.
        stdin.writer = (!stdin.closed).then_some(writer);
        // The task is gone when the guest has closed the stream: then nobody reads.
        let _ = sender.send(reader);
        Ok(())
    }

    /// The caller will write no more: the process sees the end when the FIFO is empty and has no other writer.
    pub fn close_stdin(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.closed = true;
            stdin.writer = None;
        }
    }

    /// Sends outputs that go to the caller's FIFOs elsewhere from now on: to any form of [`Target`] but a logging
    /// program, which would have to be there from the start. Files keep what they get.
    ///
    /// # Errors
    /// See [`StdioError`]; the outputs then go where they went.
    pub fn redirect(&mut self, target: &str) -> Result<(), StdioError> {
        let target = Target::parse(target)?;
        if let Target::Binary { path, .. } = &target {
            return Err(TargetError::Scheme(crate::text::harmless(&path.to_string_lossy(), 256)).into());
        }
        let open = |(stream, _): &(&'static str, _)| open_sink(&target, stream, None);
        let sinks = self.redirects.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        for ((_, task), sink) in self.redirects.drain(..).zip(sinks) {
            // An output that has ended has nothing to send.
            let _ = task.send(sink);
        }
        Ok(())
    }

    /// The part that has to be waited for before an exit is reported.
    pub fn take_drain(&mut self) -> Drain {
        Drain {
            outputs: std::mem::take(&mut self.outputs),
            held: Vec::new(),
            progress: self.progress.clone(),
        }
    }

    /// Takes back the outputs that have not ended, and those that nobody was there to take.
    pub fn keep(&mut self, mut rest: Drain) {
        self.outputs.append(&mut rest.outputs);
        self.held.append(&mut rest.held);
    }

    /// Whether an output has not ended.
    pub fn has_outputs(&self) -> bool {
        self.outputs.iter().any(|output| !output.task.is_finished())
    }

    /// Ends what still runs and waits for the logging program.
    pub async fn finish(mut self) {
        self.abort();
        // A task that is given up lets go of its ends when it runs next.
        for output in self.outputs.drain(..).chain(self.held.drain(..)) {
            let _ = output.task.await;
        }
        if let Some(logger) = self.logger.take() {
            logger.finish().await;
        }
    }

    fn abort(&mut self) {
        let outputs = self.outputs.iter().chain(&self.held).map(|output| &output.task);
        self.stdin.iter().map(|stdin| &stdin.task).chain(outputs).for_each(JoinHandle::abort);
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests;
