//! A registry that answers each request with the same failure.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Longest head of a request that is read.
const MAX_HEAD: u64 = 64 << 10;

/// What it does with a connection.
enum Behaviour {
    Answer(String),
    Tls(Arc<ServerConfig>),
    HangUp,
}

/// A server on a free port of 127.0.0.1, until it is dropped.
pub struct TestRegistry {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl TestRegistry {
    /// Answers with this status, these header lines and this body.
    ///
    /// # Panics
    /// Where no socket can be made.
    pub fn answering(status: u16, headers: &[&str], body: &str) -> Self {
        let mut text = format!("HTTP/1.1 {status} Failure\r\nConnection: close\r\n");
        for header in headers {
            text.push_str(header);
            text.push_str("\r\n");
        }
        text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        Self::start(Behaviour::Answer(text))
    }

    /// Speaks TLS, with a certificate for `name` that nobody has signed.
    ///
    /// # Panics
    /// Where no certificate can be made.
    pub fn with_certificate_of_nobody(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions of TLS")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a key that fits its certificate");
        Self::start(Behaviour::Tls(Arc::new(config)))
    }

    /// Takes connections and closes them.
    ///
    /// # Panics
    /// Where no socket can be made.
    pub fn hanging_up() -> Self {
        Self::start(Behaviour::HangUp)
    }

    fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let server = std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                // A client that goes away in the middle is the client's matter.
                let _ = serve(connection, &behaviour);
            }
        });
        Self { address, stop, server: Some(server) }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the server out of its accept.
        let _ = TcpStream::connect(self.address);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn serve(connection: TcpStream, behaviour: &Behaviour) -> io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(30)))?;
    match behaviour {
        Behaviour::Answer(text) => {
            read_head(&connection)?;
            (&connection).write_all(text.as_bytes())?;
            connection.shutdown(Shutdown::Write)
        }
        Behaviour::Tls(config) => {
            let session = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
            // The client is expected to end the handshake.
            read_head(StreamOwned::new(session, connection))
        }
        Behaviour::HangUp => connection.shutdown(Shutdown::Both),
    }
}

fn read_head(stream: impl Read) -> io::Result<()> {
    let mut lines = BufReader::new(stream.take(MAX_HEAD)).lines();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_the_one_that_was_asked_for() {
        let registry = TestRegistry::answering(418, &["X-Kind: teapot"], "short");
        let mut connection = TcpStream::connect(registry.host()).unwrap();
        connection.write_all(b"GET /v2/ HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        connection.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 418 ") && text.contains("X-Kind: teapot\r\n"), "{text}");
        assert!(text.ends_with("Content-Length: 5\r\n\r\nshort"), "{text}");
    }
}
