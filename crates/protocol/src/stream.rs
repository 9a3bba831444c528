//! Raw stream connections: one for each of a process's stdin, stdout and stderr.
//!
//! The host connects to the VMM's Unix socket, and the bytes are, in this order:
//!
//! ```text
//! host -> VMM    "CONNECT 1025\n"            opens a vsock connection to the guest's port
//! VMM  -> host   "OK <host port>\n"          the guest's agent accepted it (end of file: it did not)
//! host -> agent  magic "NCS1", 16 byte token names the stream; the same token stands in `Stdio`
//! then raw bytes, in the one direction that the stream has (terminal: stdin and stdout are two streams)
//! ```
//!
//! `CONNECT` and the hello may be sent in one write. Who closes: the writing side of a stream shuts its
//! direction down after the last byte (`SHUT_WR`, vsock `SHUTDOWN` with SEND), the reading side then closes.
//! A reader that goes away early gives the writer a reset, which a container sees as SIGPIPE on its pipe.
//! The agent keeps at most [`MAX_UNCLAIMED`] connections that no process has asked for, for
//! [`UNCLAIMED_TIMEOUT_S`] seconds.

/// First bytes of a stream connection.
pub const MAGIC: [u8; 4] = *b"NCS1";

/// Bytes of a token.
pub const TOKEN_LEN: usize = 16;

/// Bytes of the hello: magic and token.
pub const HELLO_LEN: usize = MAGIC.len() + TOKEN_LEN;

/// Longest line of the `CONNECT` exchange, newline included.
pub const MAX_CONNECT_LINE: usize = 32;

/// Connections that may wait in the agent for a process to claim them.
pub const MAX_UNCLAIMED: usize = 64;

/// Seconds for which the agent keeps an unclaimed connection, and for which a process waits for its streams.
pub const UNCLAIMED_TIMEOUT_S: u64 = 10;

/// Name of one stream: 16 random bytes, drawn by the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; TOKEN_LEN]);

/// A hello that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The first four bytes are not [`MAGIC`].
    #[error("stream does not begin with the magic bytes")]
    BadMagic,
    /// The token has another length than [`TOKEN_LEN`].
    #[error("stream token has {0} bytes instead of {TOKEN_LEN}")]
    BadTokenLength(usize),
}

impl Token {
    /// The bytes that open a stream connection.
    pub fn hello(&self) -> [u8; HELLO_LEN] {
        let mut out = [0; HELLO_LEN];
        out[..MAGIC.len()].copy_from_slice(&MAGIC);
        out[MAGIC.len()..].copy_from_slice(&self.0);
        out
    }

    /// Parses the first [`HELLO_LEN`] bytes of a connection.
    ///
    /// # Errors
    /// [`HelloError::BadMagic`] where they are not a hello.
    pub fn from_hello(bytes: &[u8; HELLO_LEN]) -> Result<Self, HelloError> {
        let (magic, token) = bytes.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(HelloError::BadMagic);
        }
        Self::try_from(token)
    }
}

impl TryFrom<&[u8]> for Token {
    type Error = HelloError;

    fn try_from(bytes: &[u8]) -> Result<Self, HelloError> {
        bytes.try_into().map(Self).map_err(|_| HelloError::BadTokenLength(bytes.len()))
    }
}

/// The line that asks the VMM for a connection to a guest port.
pub fn connect_line(port: u32) -> String {
    format!("CONNECT {port}\n")
}

/// Parses `CONNECT <port>` without its newline.
pub fn parse_connect_line(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hello_round_trips(bytes: [u8; TOKEN_LEN]) {
            prop_assert_eq!(Token::from_hello(&Token(bytes).hello()), Ok(Token(bytes)));
        }

        #[test]
        fn connect_line_round_trips(port: u32) {
            let line = connect_line(port);
            prop_assert!(line.len() <= MAX_CONNECT_LINE);
            prop_assert_eq!(parse_connect_line(line.trim_end().as_bytes()), Some(port));
        }

        #[test]
        fn any_line_parses_or_not_without_panic(line: Vec<u8>) {
            parse_connect_line(&line);
        }
    }

    #[test]
    fn signs_spaces_and_overflow_are_no_port() {
        for bad in ["CONNECT ", "CONNECT +1", "CONNECT  1", "CONNECT 1 ", "connect 1", "CONNECT 4294967296"] {
            assert_eq!(parse_connect_line(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
