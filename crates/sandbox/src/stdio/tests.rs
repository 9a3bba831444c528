use super::*;
use nacre_protocol::stream::{HELLO_LEN, TOKEN_LEN};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// The VMM's and the agent's side of the stream socket: hands out connections by their tokens.
struct Guest {
    listener: UnixListener,
    streams: HashMap<Vec<u8>, UnixStream>,
}

impl Guest {
    fn new(dir: &Path) -> (Self, Dialer) {
        let path = dir.join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        (Self { listener, streams: HashMap::new() }, Dialer::new(path))
    }

    fn stream(&mut self, token: &[u8]) -> UnixStream {
        assert_eq!(token.len(), TOKEN_LEN);
        loop {
            if let Some(stream) = self.streams.remove(token) {
                return stream;
            }
            let (mut peer, _) = self.listener.accept().unwrap();
            let mut request = vec![0; b"CONNECT 1025\n".len() + HELLO_LEN];
            peer.read_exact(&mut request).unwrap();
            peer.write_all(b"OK 1\n").unwrap();
            self.streams.insert(request[request.len() - TOKEN_LEN..].to_vec(), peer);
        }
    }
}

const SOURCE: LogSource<'_> = LogSource { namespace: "default", container: "c" };

fn fifo(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    path.to_str().unwrap().to_owned()
}

fn reader(path: &str) -> std::thread::JoinHandle<Vec<u8>> {
    // Opened for both directions at first, so that the open does not wait for a writer.
    let keep = File::options().read(true).write(true).open(path).unwrap();
    let mut fifo = File::open(path).unwrap();
    std::thread::spawn(move || {
        let mut bytes = vec![0];
        fifo.read_exact(&mut bytes).unwrap();
        drop(keep);
        fifo.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

#[tokio::test]
async fn output_reaches_its_fifo_to_the_last_byte_before_the_drain_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (mut guest, dialer) = Guest::new(dir.path());
    let stdout = fifo(dir.path(), "out");
    let output = reader(&stdout);
    let request = StdioRequest { stdout, ..StdioRequest::default() };
    let opened = open(&request, SOURCE).await.unwrap();
    let names = opened.for_agent(None);
    let mut streams = opened.connect(&dialer);
    let sent: Vec<u8> = (0..2_000_003).map(|index| (index % 253) as u8).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        guest.stream(&names.stdout).write_all(&sent).unwrap();
    });
    let rest = streams.take_drain().wait(std::future::pending()).await;
    assert!(rest.outputs.is_empty());
    streams.finish().await;
    writer.join().unwrap();
    assert!(output.join().unwrap() == expected);
}

/// Streams whose guest has written so many bytes into a FIFO and ended, and the FIFO's reader.
async fn written(dir: &Path, count: u64) -> (Streams, File) {
    let (mut guest, dialer) = Guest::new(dir);
    let stdout = fifo(dir, "out");
    let caller = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&stdout).unwrap();
    let opened = open(&StdioRequest { stdout, ..StdioRequest::default() }, SOURCE).await.unwrap();
    let names = opened.for_agent(None);
    let streams = opened.connect(&dialer);
    let write = move || guest.stream(&names.stdout).write_all(&vec![7; count as usize]).unwrap();
    tokio::task::spawn_blocking(write).await.unwrap();
    while rustix::io::ioctl_fionread(&caller).unwrap() < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (streams, caller)
}

#[tokio::test]
async fn drain_waits_for_a_caller_that_is_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (mut streams, mut caller) = written(dir.path(), 60_000).await;
    let drain = tokio::spawn(streams.take_drain().wait(std::future::pending()));
    for left in [40_000, 20_000, 0] {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!drain.is_finished(), "{left}");
        caller.read_exact(&mut [0; 20_000]).unwrap();
        assert_eq!(rustix::io::ioctl_fionread(&caller).unwrap(), left);
    }
    assert!(drain.await.unwrap().outputs.is_empty());
    assert_eq!(caller.read(&mut [0]).unwrap(), 0, "the end of the FIFO");
}

#[tokio::test]
async fn drain_does_not_wait_for_a_caller_that_has_left() {
    let dir = tempfile::tempdir().unwrap();
    let (mut streams, caller) = written(dir.path(), 60_000).await;
    drop(caller);
    let rest =
        tokio::time::timeout(STALL / 2, streams.take_drain().wait(std::future::pending())).await.unwrap();
    assert!(rest.outputs.is_empty());
}

#[tokio::test]
async fn caller_that_comes_back_after_the_end_finds_what_it_has_not_taken_and_then_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut streams, caller) = written(dir.path(), 60_000).await;
    drop(caller);
    let rest = streams.take_drain().wait(std::future::pending()).await;
    streams.keep(rest);
    assert!(!streams.has_outputs(), "nobody has to wait for it");
    // As containerd does it: the opening waits for a writer.
    let path = dir.path().join("out");
    let back = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        File::open(path).unwrap().read_to_end(&mut all).unwrap();
        all
    });
    assert!(tokio::time::timeout(Duration::from_secs(60), back).await.unwrap().unwrap() == vec![7; 60_000]);
    streams.finish().await;
}

#[tokio::test]
async fn what_nobody_has_taken_is_gone_with_the_streams() {
    let dir = tempfile::tempdir().unwrap();
    let (mut streams, caller) = written(dir.path(), 60_000).await;
    drop(caller);
    let rest = streams.take_drain().wait(std::future::pending()).await;
    streams.keep(rest);
    streams.finish().await;
    let path = dir.path().join("out");
    let mut caller = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    assert_eq!(caller.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn redirect_to_a_logging_program_or_a_bad_path_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut guest, dialer) = Guest::new(dir.path());
    let stdout = fifo(dir.path(), "out");
    let output = reader(&stdout);
    let opened = open(&StdioRequest { stdout, ..StdioRequest::default() }, SOURCE).await.unwrap();
    let names = opened.for_agent(None);
    let mut streams = opened.connect(&dialer);
    let missing = format!("file://{}/out/is/no/directory", dir.path().display());
    for bad in ["binary:///bin/cat?x=y", "http://x/y", &missing] {
        assert!(streams.redirect(bad).is_err(), "{bad}");
    }
    let writer = std::thread::spawn(move || guest.stream(&names.stdout).write_all(b"still here").unwrap());
    assert!(streams.take_drain().wait(std::future::pending()).await.outputs.is_empty());
    writer.join().unwrap();
    assert_eq!(output.join().unwrap(), b"still here");
}

#[tokio::test]
async fn stdin_ends_only_after_close_stdin() {
    let dir = tempfile::tempdir().unwrap();
    let (mut guest, dialer) = Guest::new(dir.path());
    let stdin = fifo(dir.path(), "in");
    let opened =
        open(&StdioRequest { stdin: stdin.clone(), ..StdioRequest::default() }, SOURCE).await.unwrap();
    let names = opened.for_agent(None);
    let mut streams = opened.connect(&dialer);
    let mut process = tokio::task::spawn_blocking(move || guest.stream(&names.stdin)).await.unwrap();
    streams.open_stdin().unwrap();
    // A caller comes, writes and leaves; another comes back.
    for text in ["first ", "second"] {
        File::options().write(true).open(&stdin).unwrap().write_all(text.as_bytes()).unwrap();
    }
    let mut got = [0; 12];
    let process = tokio::task::spawn_blocking(move || {
        process.read_exact(&mut got).unwrap();
        (process, got)
    });
    let (mut process, got) = process.await.unwrap();
    assert_eq!(&got, b"first second");
    streams.close_stdin();
    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        process.read_to_end(&mut rest).unwrap();
        rest
    });
    assert_eq!(rest.await.unwrap(), b"");
}

#[tokio::test]
async fn stdin_is_not_opened_before_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (mut guest, dialer) = Guest::new(dir.path());
    let stdin = fifo(dir.path(), "in");
    let opened =
        open(&StdioRequest { stdin: stdin.clone(), ..StdioRequest::default() }, SOURCE).await.unwrap();
    let names = opened.for_agent(None);
    let mut streams = opened.connect(&dialer);
    let _process = tokio::task::spawn_blocking(move || guest.stream(&names.stdin)).await.unwrap();
    // A writer that does not wait is told that nobody reads.
    let write = || File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&stdin);
    assert_eq!(write().unwrap_err().raw_os_error(), Some(libc::ENXIO));
    streams.open_stdin().unwrap();
    assert!(write().is_ok());
}

#[tokio::test]
async fn stdin_closed_before_the_start_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut guest, dialer) = Guest::new(dir.path());
    let stdin = fifo(dir.path(), "in");
    let opened = open(&StdioRequest { stdin, ..StdioRequest::default() }, SOURCE).await.unwrap();
    let names = opened.for_agent(None);
    let mut streams = opened.connect(&dialer);
    let mut process = tokio::task::spawn_blocking(move || guest.stream(&names.stdin)).await.unwrap();
    streams.close_stdin();
    streams.open_stdin().unwrap();
    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        process.read_to_end(&mut rest).unwrap();
        rest
    });
    let rest = tokio::time::timeout(Duration::from_secs(10), rest).await.expect("stdin never ends");
    assert_eq!(rest.unwrap(), b"");
}

/// Lets a guest write a line to each stream, both of which go to one place.
async fn write_both(dir: &Path, uri: String) {
    let (mut guest, dialer) = Guest::new(dir);
    let request = StdioRequest { stdout: uri.clone(), stderr: uri, ..StdioRequest::default() };
    let opened = open(&request, SOURCE).await.unwrap();
    let names = opened.for_agent(None);
    let mut streams = opened.connect(&dialer);
    let writer = std::thread::spawn(move || {
        guest.stream(&names.stdout).write_all(b"out\n").unwrap();
        guest.stream(&names.stderr).write_all(b"err\n").unwrap();
    });
    streams.take_drain().wait(std::future::pending()).await;
    writer.join().unwrap();
}

#[tokio::test]
async fn both_streams_share_one_json_file() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    write_both(dir.path(), format!("json-file://{}", log.display())).await;
    let mut lines: Vec<_> = std::fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    assert!(lines[0].contains(r#""log":"err\n","stream":"stderr""#), "{lines:?}");
    assert!(lines[1].contains(r#""log":"out\n","stream":"stdout""#), "{lines:?}");
}

#[tokio::test]
async fn file_gets_the_output_and_the_directories_that_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("not/there/yet/log");
    write_both(dir.path(), format!("file://{}", log.display())).await;
    let text = std::fs::read_to_string(log).unwrap();
    assert!(text == "out\nerr\n" || text == "err\nout\n", "{text:?}");
}

#[tokio::test]
async fn logging_program_gets_the_output_and_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let (mut guest, dialer) = Guest::new(dir.path());
    let (program, result) = (dir.path().join("logger"), dir.path().join("result"));
    let text = "#!/bin/sh\nexec 5>&-\n(echo \"$CONTAINER_NAMESPACE/$CONTAINER_ID $1\"; cat <&3) > \"$2\"\n";
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let stdout = format!("binary://{}?word={}", program.display(), result.display());
    let request = StdioRequest { stdout, ..StdioRequest::default() };
    let opened = open(&request, SOURCE).await.unwrap();
    let names = opened.for_agent(None);
    let mut streams = opened.connect(&dialer);
    let writer = std::thread::spawn(move || guest.stream(&names.stdout).write_all(b"line\n").unwrap());
    streams.take_drain().wait(std::future::pending()).await;
    streams.finish().await;
    writer.join().unwrap();
    assert_eq!(std::fs::read_to_string(result).unwrap(), "default/c word\nline\n");
}

#[tokio::test(start_paused = true)]
async fn stalled_stream_does_not_hold_the_exit_back() {
    let dir = tempfile::tempdir().unwrap();
    let (_guest, dialer) = Guest::new(dir.path());
    let stdout = fifo(dir.path(), "out");
    let opened = open(&StdioRequest { stdout, ..StdioRequest::default() }, SOURCE).await.unwrap();
    let mut streams = opened.connect(&dialer);
    // Nobody accepts the connection: no byte will ever come.
    let rest = streams.take_drain().wait(std::future::pending()).await;
    assert_eq!(rest.outputs.len(), 1);
}

#[tokio::test]
async fn stdin_that_is_no_fifo_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let request = StdioRequest { stdin: file.to_str().unwrap().into(), ..StdioRequest::default() };
    assert!(matches!(open(&request, SOURCE).await, Err(StdioError::Open { stream: "stdin", .. })));
}
