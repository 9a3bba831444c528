//! The channel to a kept machine: one TCP connection a command, frames as `tools/lab/agent.py` documents them.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::{Job, Stream};

/// Longest frame that is taken.
const MAX_FRAME: u32 = 1 << 20;

/// Kinds of frames.
mod kind {
    pub(super) const STATUS_OR_STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const ACCEPTED: u8 = 3;
}

/// An open connection whose command the machine has accepted.
pub(super) struct Accepted {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

/// Sends a job; `None` where nobody serves there (any more).
pub(super) fn send(port: u16, token: &str, job: &Job, directory: &str) -> Option<Accepted> {
    try_send(port, token, job, directory).ok()
}

fn try_send(port: u16, token: &str, job: &Job, directory: &str) -> Result<Accepted> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    let mut command = job.command.clone();
    if let Some(limit) = job.timeout {
        let limit = limit.as_secs().to_string();
        command.splice(0..0, ["timeout".to_owned(), "-k".to_owned(), "5".to_owned(), limit]);
    }
    let request = json!({ "command": command, "directory": directory });
    stream.write_all(format!("{token}\n{request}\n").as_bytes())?;
    // An answer comes at once, unless the machine just ends.
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    match read_frame(&mut reader)? {
        (kind::ACCEPTED, _) => {}
        (other, _) => bail!("the lab answered with a frame of kind {other}"),
    }
    stream.set_read_timeout(None)?;
    Ok(Accepted { stream, reader })
}

impl Accepted {
    /// Passes input and output on until the command has ended.
    pub(super) fn finish(mut self, stdin: bool, sink: &mut dyn FnMut(Stream, &[u8])) -> Result<i32> {
        let mut writer = self.stream;
        if stdin {
            // Ends with this process at the latest: a read of standard input cannot be called off.
            std::thread::spawn(move || feed(&mut io::stdin().lock(), &mut writer));
        } else {
            write_frame(&mut writer, &[]).context("cannot write to the lab")?;
        }
        loop {
            let (kind, data) = read_frame(&mut self.reader).context("the lab's machine went away")?;
            match kind {
                kind::STDOUT => sink(Stream::Out, &data),
                kind::STDERR => sink(Stream::Err, &data),
                kind::STATUS_OR_STDIN => {
                    return std::str::from_utf8(&data)?.parse().context("the lab gave no exit status");
                }
                other => bail!("the lab sent a frame of kind {other}"),
            }
        }
    }
}

fn feed(input: &mut dyn Read, connection: &mut TcpStream) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = input.read(&mut buffer).unwrap_or(0);
        if write_frame(connection, &buffer[..length]).is_err() || length == 0 {
            return;
        }
    }
}

fn write_frame(connection: &mut impl Write, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let mut frame = vec![kind::STATUS_OR_STDIN];
    frame.extend(length.to_be_bytes());
    frame.extend(data);
    connection.write_all(&frame)
}

fn read_frame(reader: &mut impl Read) -> Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    reader.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_be_bytes(length);
    if length > MAX_FRAME {
        bail!("the lab sent a frame of {length} bytes");
    }
    let mut data = vec![0; length as usize];
    reader.read_exact(&mut data)?;
    Ok((kind, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, b"text").unwrap();
        assert_eq!(read_frame(&mut bytes.as_slice()).unwrap(), (0, b"text".to_vec()));
    }

    #[test]
    fn huge_and_short_frames_are_errors() {
        assert!(read_frame(&mut [1, 255, 255, 255, 255].as_slice()).is_err());
        assert!(read_frame(&mut [1, 0, 0, 0, 4, b'a'].as_slice()).is_err());
    }
}
