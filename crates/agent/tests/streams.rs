//! Standard streams over Unix sockets in place of vsock, with real pipes and pseudo terminals.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nacre_agent::container::ChildStdio;
use nacre_agent::stream::{Attached, Claimed, Plan, StdioError, Unclaimed, accept_unix};
use nacre_protocol::rpc::agent::Stdio;
use nacre_protocol::stream::{MAX_UNCLAIMED, Token};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

/// A door with its runtime, on a thread of its own.
struct Door {
    path: PathBuf,
    unclaimed: Arc<Unclaimed>,
    runtime: tokio::runtime::Handle,
    _dir: tempfile::TempDir,
}

impl Door {
    fn open(patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("door");
        let unclaimed = Arc::new(Unclaimed::with_patience(patience));
        let (sender, receiver) = std::sync::mpsc::channel();
        let (listener_path, listening) = (path.clone(), Arc::clone(&unclaimed));
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::bind(listener_path).unwrap();
                sender.send(tokio::runtime::Handle::current()).unwrap();
                accept_unix(listener, listening).await;
            });
        });
        Self { path, unclaimed, runtime: receiver.recv().unwrap(), _dir: dir }
    }

    /// Connects as the host does.
    fn connect(&self, token: Token) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.write_all(&token.hello()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    fn on_runtime<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.runtime.spawn(async move { sender.send(work.await) });
        receiver.recv_timeout(Duration::from_secs(60)).expect("the runtime answers")
    }

    fn attach(&self, plan: Plan, terminal: Option<OwnedFd>) -> Attached {
        let unclaimed = Arc::clone(&self.unclaimed);
        self.on_runtime(async move {
            let claimed: Claimed = plan.claim(&unclaimed).await.unwrap();
            claimed.attach(terminal).unwrap()
        })
    }
}

fn token(byte: u8) -> Token {
    Token([byte; 16])
}

fn stdio(stdin: Option<u8>, stdout: Option<u8>, stderr: Option<u8>) -> Stdio {
    let bytes = |byte: Option<u8>| byte.map(|byte| token(byte).0.to_vec()).unwrap_or_default();
    Stdio { stdin: bytes(stdin), stdout: bytes(stdout), stderr: bytes(stderr), ..Default::default() }
}

/// The child's descriptors of a plan without a terminal.
fn files(child: ChildStdio) -> (File, File, File) {
    match child {
        ChildStdio::Files { stdin, stdout, stderr } => (stdin.into(), stdout.into(), stderr.into()),
        ChildStdio::Terminal { .. } => panic!("no terminal was asked for"),
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n as u32).wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect()
}

const PATIENT: Duration = Duration::from_secs(30);

#[test]
fn output_arrives_whole_and_ends_with_a_half_close() {
    let door = Door::open(PATIENT);
    let (plan, child) = Plan::new(&stdio(None, Some(1), Some(2))).unwrap();
    let (_, mut stdout, mut stderr) = files(child);
    let (mut out, mut err) = (door.connect(token(1)), door.connect(token(2)));
    door.attach(plan, None);
    let sent = pattern(20 << 20);
    let expected = sent.clone();
    let child = thread::spawn(move || {
        stdout.write_all(&sent).unwrap();
        stderr.write_all(b"oops").unwrap();
    });
    let mut received = Vec::new();
    out.read_to_end(&mut received).unwrap();
    assert!(received == expected, "{} bytes of {} or other ones", received.len(), expected.len());
    let mut complaint = Vec::new();
    err.read_to_end(&mut complaint).unwrap();
    assert_eq!(complaint, b"oops");
    child.join().unwrap();
    // Half-closed: the agent still takes what this side might say, until it closes.
    assert_eq!(err.write(b"").unwrap(), 0);
}

#[test]
fn connection_that_comes_after_the_claim_is_used_as_well() {
    let door = Door::open(PATIENT);
    let (plan, child) = Plan::new(&stdio(None, Some(3), None)).unwrap();
    let (_, mut stdout, _) = files(child);
    let unclaimed = Arc::clone(&door.unclaimed);
    let claiming = door.runtime.spawn(async move { plan.claim(&unclaimed).await });
    let mut out = door.connect(token(3));
    door.on_runtime(async move { claiming.await.unwrap().unwrap().attach(None).map(drop).unwrap() });
    stdout.write_all(b"late").unwrap();
    drop(stdout);
    let mut received = String::new();
    out.read_to_string(&mut received).unwrap();
    assert_eq!(received, "late");
}

#[test]
fn stdin_arrives_whole_and_its_end_closes_the_pipe() {
    let door = Door::open(PATIENT);
    let (plan, child) = Plan::new(&stdio(Some(4), None, None)).unwrap();
    let (mut stdin, _, _) = files(child);
    let mut host = door.connect(token(4));
    door.attach(plan, None);
    let sent = pattern(10 << 20);
    let expected = sent.clone();
    let writer = thread::spawn(move || {
        host.write_all(&sent).unwrap();
        host.shutdown(Shutdown::Write).unwrap();
        // The agent has delivered all of it and closes.
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    });
    let mut received = Vec::new();
    stdin.read_to_end(&mut received).unwrap();
    assert!(received == expected, "{} bytes of {} or other ones", received.len(), expected.len());
    writer.join().unwrap();
}

#[test]
fn close_stdin_delivers_what_has_arrived_before_it_closes() {
    let door = Door::open(PATIENT);
    let (plan, child) = Plan::new(&stdio(Some(5), None, None)).unwrap();
    let (mut stdin, _, _) = files(child);
    let mut host = door.connect(token(5));
    let attached = door.attach(plan, None);
    host.write_all(b"last words").unwrap();
    attached.close_stdin();
    let mut received = String::new();
    stdin.read_to_string(&mut received).unwrap();
    assert_eq!(received, "last words");
}

#[test]
fn process_that_closes_its_stdin_resets_an_idle_host() {
    let door = Door::open(PATIENT);
    let (plan, child) = Plan::new(&stdio(Some(6), None, None)).unwrap();
    let mut host = door.connect(token(6));
    door.attach(plan, None);
    drop(child);
    // The host has sent nothing; it learns all the same.
    assert!(matches!(host.read(&mut [0]), Ok(0)));
}

#[test]
fn host_that_goes_away_is_a_broken_pipe_to_the_process() {
    let door = Door::open(PATIENT);
    let (plan, child) = Plan::new(&stdio(None, Some(7), None)).unwrap();
    let (_, mut stdout, _) = files(child);
    let out = door.connect(token(7));
    door.attach(plan, None);
    drop(out);
    let deadline = Instant::now() + Duration::from_secs(30);
    let error = loop {
        assert!(Instant::now() < deadline, "the process never learns that nobody reads");
        match stdout.write_all(b"x") {
            Ok(()) => thread::sleep(Duration::from_millis(1)),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn slow_host_holds_the_process_back_instead_of_filling_memory() {
    let door = Door::open(PATIENT);
    let (plan, child) = Plan::new(&stdio(None, Some(8), None)).unwrap();
    let (_, mut stdout, _) = files(child);
    let mut out = door.connect(token(8));
    door.attach(plan, None);
    // Nobody reads: what fits is one pipe, and the buffers of one socket.
    rustix::io::ioctl_fionbio(&stdout, true).unwrap();
    let block = vec![7; 64 << 10];
    let (mut taken, mut refused) = (0, 0);
    while refused < 50 {
        match stdout.write(&block) {
            Ok(length) => taken += length,
            Err(_) => {
                refused += 1;
                thread::sleep(Duration::from_millis(2));
            }
        }
        assert!(taken < 8 << 20, "{taken} bytes were taken although nobody reads");
    }
    drop(stdout);
    let mut received = Vec::new();
    out.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), taken);
}

#[test]
fn terminal_passes_both_ways_and_ends_with_its_last_slave() {
    let door = Door::open(PATIENT);
    let mut request = stdio(Some(9), Some(10), None);
    request.terminal = true;
    (request.columns, request.rows) = (132, 43);
    let (plan, child) = Plan::new(&request).unwrap();
    assert!(matches!(child, ChildStdio::Terminal { columns: 132, rows: 43 }));
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let mut slave = File::from(ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap());
    let (mut input, mut output) = (door.connect(token(9)), door.connect(token(10)));
    let attached = door.attach(plan, Some(master));

    input.write_all(b"hello\r").unwrap();
    let mut line = [0; 16];
    let length = slave.read(&mut line).unwrap();
    assert_eq!(&line[..length], b"hello\n");
    assert!(attached.resize(80, 24).unwrap());
    assert_eq!(rustix::termios::tcgetwinsize(&slave).unwrap().ws_col, 80);
    slave.write_all(b"bye\n").unwrap();
    drop(slave);
    let mut seen = String::new();
    output.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "hello\r\nbye\r\n");
}

#[test]
fn terminal_without_an_output_stream_does_not_stop_its_process() {
    let door = Door::open(PATIENT);
    let (plan, _) = Plan::new(&Stdio { terminal: true, ..Default::default() }).unwrap();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    unlockpt(&master).unwrap();
    let mut slave = File::from(ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap());
    let attached = door.attach(plan, Some(master));
    slave.write_all(&vec![b'x'; 1 << 20]).unwrap();
    drop((slave, attached));
}

#[test]
fn stream_that_does_not_come_is_named_after_the_timeout() {
    let door = Door::open(Duration::from_millis(100));
    let (plan, _child) = Plan::new(&stdio(None, None, Some(11))).unwrap();
    let unclaimed = Arc::clone(&door.unclaimed);
    let error = door.on_runtime(async move { plan.claim(&unclaimed).await.map(drop).unwrap_err() });
    assert!(error.to_string().contains("stderr"), "{error}");
}

#[test]
fn unclaimed_connection_is_closed_after_the_timeout() {
    let door = Door::open(Duration::from_millis(100));
    let mut forgotten = door.connect(token(12));
    assert_eq!(forgotten.read(&mut [0]).unwrap(), 0);
}

#[test]
fn connection_without_a_proper_hello_is_closed() {
    let door = Door::open(PATIENT);
    let mut stream = UnixStream::connect(&door.path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n12345").unwrap();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn flood_of_unclaimed_connections_is_bounded_and_the_next_claim_works() {
    let door = Door::open(Duration::from_secs(2));
    let flood: Vec<_> = (0..MAX_UNCLAIMED + 40)
        .map(|n| {
            let mut stream = UnixStream::connect(&door.path).unwrap();
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&(n as u64 + 1000).to_le_bytes());
            // Refused ones may be closed before they have said anything.
            let _ = stream.write_all(&Token(bytes).hello());
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream
        })
        .collect();
    // All are closed in the end: 40 at once, the others after the timeout.
    for mut stream in flood {
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    let (plan, child) = Plan::new(&stdio(None, Some(13), None)).unwrap();
    let mut out = door.connect(token(13));
    door.attach(plan, None);
    drop(child);
    assert_eq!(out.read(&mut [0]).unwrap(), 0);
}

#[test]
fn second_connection_with_the_same_token_is_closed_and_the_first_kept() {
    let door = Door::open(PATIENT);
    let mut first = door.connect(token(14));
    let mut second = door.connect(token(14));
    // Which of the two arrives first is the door's order of accepting: that of connecting.
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    let (plan, child) = Plan::new(&stdio(None, Some(14), None)).unwrap();
    let (_, mut stdout, _) = files(child);
    door.attach(plan, None);
    stdout.write_all(b"first").unwrap();
    drop(stdout);
    let mut received = String::new();
    first.read_to_string(&mut received).unwrap();
    assert_eq!(received, "first");
}

#[test]
fn streams_that_make_no_sense_are_refused() {
    let short = Stdio { stdout: vec![1; 15], ..Default::default() };
    assert!(matches!(Plan::new(&short), Err(StdioError::Token { name: "stdout", .. })));
    assert!(matches!(Plan::new(&stdio(Some(1), Some(1), None)), Err(StdioError::SameToken)));
    let terminal = Stdio { terminal: true, ..stdio(None, None, Some(1)) };
    assert!(matches!(Plan::new(&terminal), Err(StdioError::TerminalWithStderr)));
    let huge = Stdio { terminal: true, columns: 65_536, ..Default::default() };
    assert!(matches!(Plan::new(&huge), Err(StdioError::TerminalSize { .. })));
}
