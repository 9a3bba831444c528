//! A tiny HTTP/1.1 server: one thread for each connection, one request each.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// What a client asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn range_start(&self) -> Option<usize> {
        self.header("Range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// What the server does about it.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    /// Content-Length and all of it.
    Whole(Vec<u8>),
    /// Says `claimed` bytes, sends these, and closes.
    Cut { bytes: Vec<u8>, claimed: usize },
    /// Says `claimed` bytes, sends these, and waits until the client goes away.
    Stall { bytes: Vec<u8>, claimed: usize },
    /// Chunked, with a proper end.
    Chunked(Vec<u8>),
    /// Chunked, the same piece again and again until the client goes away.
    Endless(Vec<u8>),
    /// These bytes instead of any response, then waits until the client goes away.
    Raw(Vec<u8>),
    /// The same bytes again and again instead of any response.
    RawEndless(Vec<u8>),
}

impl Reply {
    fn new(status: u16, body: Body) -> Self {
        Self { status, headers: Vec::new(), body }
    }
    pub fn ok(bytes: Vec<u8>) -> Self {
        Self::new(200, Body::Whole(bytes))
    }
    pub fn status(status: u16) -> Self {
        Self::new(status, Body::Whole(Vec::new()))
    }
    pub fn part(bytes: &[u8], first: usize) -> Self {
        let range = format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len());
        Self::new(206, Body::Whole(bytes[first..].to_vec())).header("Content-Range", &range)
    }
    pub fn cut(bytes: &[u8], claimed: usize) -> Self {
        Self::new(200, Body::Cut { bytes: bytes.to_vec(), claimed })
    }
    pub fn stall(bytes: &[u8], claimed: usize) -> Self {
        Self::new(200, Body::Stall { bytes: bytes.to_vec(), claimed })
    }
    pub fn chunked(bytes: &[u8]) -> Self {
        Self::new(200, Body::Chunked(bytes.to_vec()))
    }
    pub fn endless(bytes: &[u8]) -> Self {
        Self::new(200, Body::Endless(bytes.to_vec()))
    }
    pub fn raw(bytes: &[u8]) -> Self {
        Self::new(0, Body::Raw(bytes.to_vec()))
    }
    pub fn raw_endless(bytes: &[u8]) -> Self {
        Self::new(0, Body::RawEndless(bytes.to_vec()))
    }
    pub fn redirect(to: &str) -> Self {
        Self::status(307).header("Location", to)
    }
    pub fn bearer(realm: &str) -> Self {
        let challenge =
            format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:demo/app:pull\"");
        Self::status(401).header("WWW-Authenticate", &challenge)
    }
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A running server; it stops when dropped.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(handler, |stream| Some(Box::new(stream)))
    }

    /// A server that speaks TLS with this configuration.
    pub fn start_tls(
        config: rustls::ServerConfig,
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let config = Arc::new(config);
        Self::start_with(handler, move |stream| {
            let connection = rustls::ServerConnection::new(config.clone()).ok()?;
            Some(Box::new(rustls::StreamOwned::new(connection, stream)))
        })
    }

    fn start_with(
        handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
        wrap: impl Fn(TcpStream) -> Option<Box<dyn Stream>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopped) = (requests.clone(), stop.clone());
        let (handler, wrap): (Arc<Handler>, _) = (Arc::new(handler), Arc::new(wrap));
        let accepting = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (handler, log, wrap) = (handler.clone(), log.clone(), wrap.clone());
                thread::spawn(move || {
                    let Some(stream) = stream.ok().and_then(|stream| wrap(stream)) else { return };
                    // A client that goes away in the middle is a part of many tests.
                    let _ = serve(stream, &handler, &log);
                });
            }
        });
        Self { address, requests, stop, accepting: Some(accepting) }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Name of the test image here.
    pub fn name(&self) -> String {
        format!("{}/demo/app:latest", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn forget_requests(&self) {
        self.requests.lock().unwrap().clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

trait Stream: Read + Write {
    fn finish(&mut self);
}

impl Stream for TcpStream {
    fn finish(&mut self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl Stream for rustls::StreamOwned<rustls::ServerConnection, TcpStream> {
    fn finish(&mut self) {
        self.conn.send_close_notify();
        let _ = self.flush();
        let _ = self.sock.shutdown(Shutdown::Both);
    }
}

fn serve(
    mut stream: Box<dyn Stream>,
    handler: &Arc<Handler>,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let Some(request) = read_request(&mut stream)? else { return Ok(()) };
    log.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    send(&mut stream, &request, reply)?;
    stream.finish();
    Ok(())
}

fn read_request(stream: &mut Box<dyn Stream>) -> std::io::Result<Option<Request>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut request =
        Request { method, path: path.to_owned(), query: query.to_owned(), headers, body: String::new() };
    if let Some(length) = request.header("Content-Length").and_then(|text| text.parse().ok()) {
        reader.take(length).read_to_string(&mut request.body)?;
    }
    Ok(Some(request))
}

fn send(stream: &mut Box<dyn Stream>, request: &Request, reply: Reply) -> std::io::Result<()> {
    let head = |framing: &str| {
        let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n{framing}\r\n", reply.status);
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    };
    let sized = |length: usize| head(&format!("Content-Length: {length}"));
    let no_body = request.method == "HEAD";
    match &reply.body {
        Body::Whole(bytes) => {
            stream.write_all(&sized(bytes.len()))?;
            if !no_body {
                stream.write_all(bytes)?;
            }
        }
        Body::Cut { bytes, claimed } => {
            stream.write_all(&sized(*claimed))?;
            stream.write_all(bytes)?;
        }
        Body::Stall { bytes, claimed } => {
            stream.write_all(&sized(*claimed))?;
            stream.write_all(bytes)?;
            wait_for_end(stream)?;
        }
        Body::Chunked(bytes) => {
            stream.write_all(&head("Transfer-Encoding: chunked"))?;
            write!(stream, "{:x}\r\n", bytes.len())?;
            stream.write_all(bytes)?;
            stream.write_all(b"\r\n0\r\n\r\n")?;
        }
        Body::Endless(bytes) => {
            stream.write_all(&head("Transfer-Encoding: chunked"))?;
            loop {
                write!(stream, "{:x}\r\n", bytes.len())?;
                stream.write_all(bytes)?;
                stream.write_all(b"\r\n")?;
            }
        }
        Body::Raw(bytes) => {
            stream.write_all(bytes)?;
            stream.flush()?;
            wait_for_end(stream)?;
        }
        Body::RawEndless(bytes) => loop {
            stream.write_all(bytes)?;
        },
    }
    stream.flush()
}

fn wait_for_end(stream: &mut Box<dyn Stream>) -> std::io::Result<()> {
    stream.flush()?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest)? > 0 {}
    Ok(())
}
