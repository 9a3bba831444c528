//! Exec, attach and port-forward: the streams of one request over SPDY/3.1 to the runtime's streaming server, as an API
//! server and a kubelet open them for `kubectl`.
//!
//! Only what these requests need of SPDY is here. Header blocks go out as stored blocks of zlib, so nothing is compressed;
//! those that come in say nothing that is needed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use super::{LIMIT, Pod};
use crate::sandbox::Outcome;
use nacre_protocol::cri::{AttachRequest, ExecRequest, PortForwardRequest, StreamResponse};

/// Subprotocols (`X-Stream-Protocol-Version`).
const REMOTE_COMMAND: &str = "v4.channel.k8s.io";
const PORT_FORWARD: &str = "portforward.k8s.io";

const CONTROL: u32 = 0x8003_0000;
const SYN_STREAM: u32 = 1;
const RST_STREAM: u32 = 3;
const FIN: u8 = 1;

/// Longest frame.
const MAX_FRAME: usize = 1 << 20;

/// A stream of a request, by its `streamtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// How the request ended.
    Error,
    /// To a process.
    Stdin,
    /// From a process.
    Stdout,
    /// From a process without a terminal.
    Stderr,
    /// Sizes of the terminal.
    Resize,
    /// To and from a port.
    Data,
}

impl Channel {
    fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Resize => "resize",
            Self::Data => "data",
        }
    }
}

/// What came over a stream.
#[derive(Debug)]
struct Stream {
    channel: Channel,
    id: u32,
    got: Vec<u8>,
    ended: bool,
}

/// One piece of a stream: its id, its bytes, whether it is the last.
type Piece = (u32, Vec<u8>, bool);

/// The streams of a request.
pub struct Streams {
    socket: TcpStream,
    inbox: Receiver<Piece>,
    streams: Vec<Stream>,
    connected: bool,
    headers_sent: bool,
}

impl Pod<'_> {
    /// Runs a command in a container with its streams; with a terminal there is no stderr of its own.
    #[track_caller]
    pub fn exec_streams(&self, container: &str, command: &[&str], tty: bool) -> Streams {
        let mut request = ExecRequest::new();
        request.container_id = container.to_owned();
        request.cmd = command.iter().map(|word| (*word).to_owned()).collect();
        (request.stdin, request.stdout, request.stderr, request.tty) = (true, true, !tty, tty);
        let reply: StreamResponse = self.cri().must("Exec", &request);
        Streams::of_process(&reply.url, tty)
    }

    /// Joins the streams of a container; `tty` as the container has it.
    #[track_caller]
    pub fn attach(&self, container: &str, tty: bool) -> Streams {
        let mut request = AttachRequest::new();
        request.container_id = container.to_owned();
        (request.stdin, request.stdout, request.stderr, request.tty) = (true, true, !tty, tty);
        let reply: StreamResponse = self.cri().must("Attach", &request);
        Streams::of_process(&reply.url, tty)
    }

    /// Connects to a port of the pod's loopback.
    #[track_caller]
    pub fn forward(&self, port: u16) -> Streams {
        let pod_sandbox_id = self.id().to_owned();
        let request = PortForwardRequest { pod_sandbox_id, port: vec![port.into()], ..Default::default() };
        let reply: StreamResponse = self.cri().must("PortForward", &request);
        let mut streams = Streams::connect(&reply.url, PORT_FORWARD);
        let port = port.to_string();
        for channel in [Channel::Error, Channel::Data] {
            streams.open(channel, &[("port", &port), ("requestid", "0")]);
        }
        streams.close(Channel::Error);
        streams
    }
}

impl Streams {
    #[track_caller]
    fn of_process(url: &str, tty: bool) -> Self {
        let mut streams = Self::connect(url, REMOTE_COMMAND);
        for channel in [Channel::Error, Channel::Stdin, Channel::Stdout] {
            streams.open(channel, &[]);
        }
        streams.open(if tty { Channel::Resize } else { Channel::Stderr }, &[]);
        streams
    }

    /// Asks for SPDY at a URL of the streaming server's.
    #[track_caller]
    fn connect(url: &str, protocol: &str) -> Self {
        let (host, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
        let socket = TcpStream::connect(host).expect("the streaming server listens");
        let request = format!(
            "POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n"
        );
        (&socket).write_all(request.as_bytes()).expect("a request");
        socket.set_read_timeout(Some(LIMIT)).expect("a limit");
        let mut reader = BufReader::new(socket.try_clone().expect("another descriptor"));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).expect("an answer"), 0, "no answer: {head}");
        }
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let (sender, inbox) = channel();
        std::thread::spawn(move || read_frames(&mut reader, &sender));
        Self { socket, inbox, streams: Vec::new(), connected: true, headers_sent: false }
    }

    fn open(&mut self, channel: Channel, headers: &[(&str, &str)]) {
        // A client's streams have odd numbers.
        let id = u32::try_from(2 * self.streams.len() + 1).expect("a handful of streams");
        let mut block = Vec::new();
        put_u32(&mut block, headers.len() + 1);
        for (key, value) in [("streamtype", channel.name())].iter().chain(headers) {
            for text in [key, value] {
                put_u32(&mut block, text.len());
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut body = [id.to_be_bytes(), [0; 4]].concat();
        body.extend_from_slice(&[0, 0]);
        if !std::mem::replace(&mut self.headers_sent, true) {
            // RFC 1950: deflate, window of 32 KiB.
            body.extend_from_slice(&[0x78, 0x01]);
        }
        // RFC 1951, section 3.2.4: a stored block that is not the last.
        let length = u16::try_from(block.len()).expect("a short block");
        body.push(0);
        body.extend_from_slice(&length.to_le_bytes());
        body.extend_from_slice(&(!length).to_le_bytes());
        body.extend_from_slice(&block);
        // An empty one, with which a reader hands on what it has.
        body.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        self.write(CONTROL | SYN_STREAM, 0, &body);
        self.streams.push(Stream { channel, id, got: Vec::new(), ended: false });
    }

    fn write(&mut self, first_word: u32, flags: u8, body: &[u8]) {
        let length = u32::try_from(body.len()).expect("a short frame") | u32::from(flags) << 24;
        let frame = [&first_word.to_be_bytes()[..], &length.to_be_bytes(), body].concat();
        // A peer that is gone is told by what is read.
        let _ = self.socket.write_all(&frame);
    }

    fn at(&self, channel: Channel) -> usize {
        self.streams.iter().position(|stream| stream.channel == channel).expect("a stream of this request")
    }

    /// Sends bytes.
    pub fn send(&mut self, channel: Channel, bytes: &[u8]) {
        let id = self.streams[self.at(channel)].id;
        for piece in bytes.chunks(16 << 10) {
            self.write(id, 0, piece);
        }
    }

    /// Tells the size of the terminal.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let size = format!("{{\"Width\":{columns},\"Height\":{rows}}}");
        self.send(Channel::Resize, size.as_bytes());
    }

    /// Sends no more.
    pub fn close(&mut self, channel: Channel) {
        let id = self.streams[self.at(channel)].id;
        self.write(id, FIN, &[]);
    }

    /// Waits until this text has come over the stream; all that has.
    ///
    /// # Panics
    /// Where it does not come.
    #[track_caller]
    pub fn expect(&mut self, channel: Channel, text: &str) -> String {
        let at = self.at(channel);
        loop {
            let got = String::from_utf8_lossy(&self.streams[at].got).into_owned();
            if got.contains(text) {
                return got;
            }
            let more = self.connected && !self.streams[at].ended;
            assert!(more, "{channel:?} ended without {text:?}: {:?}", self.streams);
            self.next();
        }
    }

    /// All that comes over the stream to its end.
    #[track_caller]
    pub fn read_to_end(&mut self, channel: Channel) -> Vec<u8> {
        let at = self.at(channel);
        while self.connected && !self.streams[at].ended {
            self.next();
        }
        self.streams[at].got.clone()
    }

    #[track_caller]
    fn next(&mut self) {
        let begun = Instant::now();
        let Ok((id, bytes, last)) = self.inbox.recv_timeout(LIMIT) else {
            assert!(begun.elapsed() < LIMIT, "nothing more comes: {:?}", self.streams);
            self.connected = false;
            return;
        };
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == id) {
            stream.got.extend_from_slice(&bytes);
            stream.ended |= last;
        }
    }

    /// Waits for the end of the process: its status, and all output. A request that failed has the status -1, and
    /// why at the end of its standard error.
    #[track_caller]
    pub fn finish(mut self) -> Outcome {
        while self.connected {
            self.next();
        }
        let text = |channel| {
            let stream = self.streams.iter().find(|stream| stream.channel == channel);
            stream.map(|stream| String::from_utf8_lossy(&stream.got).into_owned()).unwrap_or_default()
        };
        let (status, why) = status(&text(Channel::Error));
        Outcome { status, stdout: text(Channel::Stdout), stderr: text(Channel::Stderr) + &why }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// A process's status from a `metav1.Status`.
fn status(error: &str) -> (i32, String) {
    let json: serde_json::Value = serde_json::from_str(error).unwrap_or_default();
    if json["status"] == "Success" {
        return (0, String::new());
    }
    let causes = json["details"]["causes"].as_array();
    let code = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    let code = code.and_then(|cause| cause["message"].as_str()?.parse().ok());
    code.map_or_else(|| (-1, error.to_owned()), |code| (code, String::new()))
}

/// Reads frames to the end of the connection.
fn read_frames(reader: &mut BufReader<TcpStream>, sender: &Sender<Piece>) {
    let mut head = [0; 8];
    while reader.read_exact(&mut head).is_ok() {
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if length > MAX_FRAME {
            return;
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let piece = if word & 1 << 31 == 0 {
            (word, body, head[4] & FIN != 0)
        } else if word == CONTROL | RST_STREAM && length >= 4 {
            (u32::from_be_bytes([body[0], body[1], body[2], body[3]]), Vec::new(), true)
        } else {
            continue;
        };
        if sender.send(piece).is_err() {
            return;
        }
    }
}

fn put_u32(to: &mut Vec<u8>, value: usize) {
    to.extend_from_slice(&u32::try_from(value).expect("a short text").to_be_bytes());
}
