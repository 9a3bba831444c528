//! One process's standard streams: from the request to running copy tasks.
//!
//! ```text
//! Plan::new(request)      descriptors for the child, the agent's ends, tokens
//!   -> claim(unclaimed)   the connections, while the child is being made
//!   -> Claimed::attach    copy tasks run
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nacre_protocol::rpc::agent::Stdio;
use nacre_protocol::stream::{HelloError, Token};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::sync::Notify;

use super::copy::{PIPE_SIZE, drain_pipe, drain_terminal, feed_pipe, feed_terminal};
use super::fd::AsyncStream;
use super::unclaimed::{ClaimError, Unclaimed};
use crate::container::ChildStdio;

/// Streams that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// A token is none.
    #[error("{name}")]
    Token {
        /// Which stream.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        source: HelloError,
    },
    /// Two streams of one process have the same token.
    #[error("two streams have the same token")]
    SameToken,
    /// A terminal has one output.
    #[error("a process with a terminal has no stderr stream")]
    TerminalWithStderr,
    /// Columns or rows above what a terminal can have.
    #[error("terminal size {columns}x{rows} is too large")]
    TerminalSize {
        /// As asked for.
        columns: u32,
        /// As asked for.
        rows: u32,
    },
    /// The kernel gave no pipe, or no descriptor.
    #[error("cannot make pipes")]
    Pipe(#[source] io::Error),
}

/// The agent's side of one process's streams before it exists.
#[derive(Debug)]
pub struct Plan {
    stdin: Option<Wanted>,
    stdout: Option<Wanted>,
    stderr: Option<Wanted>,
}

/// A stream to claim, and the agent's end of the pipe (none with a terminal: its master comes later).
#[derive(Debug)]
struct Wanted {
    token: Token,
    pipe: Option<OwnedFd>,
}

/// The connections of one process.
#[derive(Debug)]
pub struct Claimed {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
}

#[derive(Debug)]
struct Stream {
    socket: AsyncStream,
    pipe: Option<OwnedFd>,
}

/// Handle on the streams of a process that runs.
#[derive(Debug, Default)]
pub struct Attached {
    terminal: Option<Arc<AsyncStream>>,
    close_stdin: Arc<Notify>,
}

impl Plan {
    /// Checks the request and makes the pipes.
    ///
    /// # Errors
    /// [`StdioError`]; all but the last are the request's fault.
    pub fn new(request: &Stdio) -> Result<(Self, ChildStdio), StdioError> {
        let stdin = token(&request.stdin, "stdin")?;
        let stdout = token(&request.stdout, "stdout")?;
        let stderr = token(&request.stderr, "stderr")?;
        let both = [(stdin, stdout), (stdin, stderr), (stdout, stderr)];
        if both.iter().any(|(one, other)| one.is_some() && one == other) {
            return Err(StdioError::SameToken);
        }
        let size = terminal_size(request.columns, request.rows)?;
        if request.terminal {
            if stderr.is_some() {
                return Err(StdioError::TerminalWithStderr);
            }
            let wanted = |token: Option<Token>| token.map(|token| Wanted { token, pipe: None });
            let plan = Self { stdin: wanted(stdin), stdout: wanted(stdout), stderr: None };
            return Ok((plan, ChildStdio::Terminal { columns: size.ws_col, rows: size.ws_row }));
        }
        let (stdin, child_stdin) = end_and_child(stdin, Direction::In).map_err(StdioError::Pipe)?;
        let (stdout, child_stdout) = end_and_child(stdout, Direction::Out).map_err(StdioError::Pipe)?;
        let (stderr, child_stderr) = end_and_child(stderr, Direction::Out).map_err(StdioError::Pipe)?;
        let child = ChildStdio::Files { stdin: child_stdin, stdout: child_stdout, stderr: child_stderr };
        Ok((Self { stdin, stdout, stderr }, child))
    }

    /// Gets the connections, which may still have to arrive.
    ///
    /// # Errors
    /// The first [`ClaimError`].
    pub async fn claim(self, unclaimed: &Unclaimed) -> Result<Claimed, ClaimError> {
        let (stdin, stdout, stderr) = tokio::try_join!(
            claim(self.stdin, unclaimed, "stdin"),
            claim(self.stdout, unclaimed, "stdout"),
            claim(self.stderr, unclaimed, "stderr"),
        )?;
        Ok(Claimed { stdin, stdout, stderr })
    }
}

impl Claimed {
    /// Starts the copy tasks, which end by themselves with the process's last descriptor.
    ///
    /// # Errors
    /// Where a descriptor cannot be watched.
    pub fn attach(self, terminal: Option<OwnedFd>) -> io::Result<Attached> {
        let close_stdin = Arc::new(Notify::new());
        let Some(master) = terminal else {
            if let Some((socket, pipe)) = self.stdin.and_then(Stream::with_pipe) {
                tokio::spawn(feed_pipe(socket, AsyncStream::new(pipe)?, Arc::clone(&close_stdin)));
            }
            for (socket, pipe) in
                [self.stdout, self.stderr].into_iter().flatten().filter_map(Stream::with_pipe)
            {
                tokio::spawn(drain_pipe(AsyncStream::new(pipe)?, socket));
            }
            return Ok(Attached { terminal: None, close_stdin });
        };
        let master = Arc::new(AsyncStream::new(master)?);
        if let Some(stream) = self.stdin {
            tokio::spawn(feed_terminal(stream.socket, Arc::clone(&master)));
        }
        tokio::spawn(drain_terminal(Arc::clone(&master), self.stdout.map(|stream| stream.socket)));
        Ok(Attached { terminal: Some(master), close_stdin })
    }
}

impl Stream {
    fn with_pipe(self) -> Option<(AsyncStream, OwnedFd)> {
        self.pipe.map(|pipe| (self.socket, pipe))
    }
}

impl Attached {
    /// Delivers what has arrived for stdin, then closes it. Nothing for a terminal, which has no end of file.
    pub fn close_stdin(&self) {
        self.close_stdin.notify_one();
    }

    /// Gives the terminal another size; false where the process has none.
    ///
    /// # Errors
    /// [`StdioError::TerminalSize`], and `EIO` from the kernel as [`StdioError::Pipe`].
    pub fn resize(&self, columns: u32, rows: u32) -> Result<bool, StdioError> {
        let size = terminal_size(columns, rows)?;
        let Some(master) = &self.terminal else { return Ok(false) };
        match tcsetwinsize(master, size) {
            // All slaves are closed: the process is ending, and its size is nobody's concern.
            Ok(()) | Err(Errno::IO) => Ok(true),
            Err(error) => Err(StdioError::Pipe(error.into())),
        }
    }
}

/// Which way a stream goes, seen from the process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// The agent's end with its token, and the child's end: a pipe, or /dev/null without a token.
fn end_and_child(token: Option<Token>, direction: Direction) -> io::Result<(Option<Wanted>, OwnedFd)> {
    let Some(token) = token else {
        let flags = if direction == Direction::In { OFlags::RDONLY } else { OFlags::WRONLY };
        return Ok((None, rustix::fs::open("/dev/null", flags | OFlags::CLOEXEC, Mode::empty())?));
    };
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (ours, childs) = match direction {
        Direction::In => (write, read),
        Direction::Out => {
            // Fewer switches between the process and this task. A refusal leaves the default, 64 KiB.
            let _ = fcntl_setpipe_size(&read, PIPE_SIZE);
            (read, write)
        }
    };
    Ok((Some(Wanted { token, pipe: Some(ours) }), childs))
}

async fn claim(
    wanted: Option<Wanted>,
    unclaimed: &Unclaimed,
    name: &'static str,
) -> Result<Option<Stream>, ClaimError> {
    match wanted {
        None => Ok(None),
        Some(Wanted { token, pipe }) => {
            Ok(Some(Stream { socket: unclaimed.claim(token, name).await?, pipe }))
        }
    }
}

fn token(bytes: &[u8], name: &'static str) -> Result<Option<Token>, StdioError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    Token::try_from(bytes).map(Some).map_err(|source| StdioError::Token { name, source })
}

fn terminal_size(columns: u32, rows: u32) -> Result<Winsize, StdioError> {
    match (u16::try_from(columns), u16::try_from(rows)) {
        (Ok(ws_col), Ok(ws_row)) => Ok(Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }),
        _ => Err(StdioError::TerminalSize { columns, rows }),
    }
}
