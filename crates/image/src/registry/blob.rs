//! A layer as a stream of bytes, in order, each once, whatever the connection does.
//!
//! When a connection breaks, the next request asks for the rest (`Range: bytes=N-`), and the receiver, which
//! hashes as it goes, never notices. A registry that ignores the range sends all again and what is known is
//! skipped; whether it is the same is left to the digest.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, RANGE, TRANSFER_ENCODING};
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc::Sender;

use super::RegistryError;
use super::client::Client;
use super::transport::authority;
use crate::digest::Digest;

/// A connection that brought so many bytes was good: failures are counted anew after it.
const GOOD_CONNECTION_BYTES: u64 = 256 << 10;

/// Slower than this, for as long as a silence is borne, counts as silence.
const MIN_BYTES_PER_SECOND: u64 = 512;

/// What to fetch, and whom to tell.
pub(crate) struct BlobRequest<'a> {
    /// Its digest; checked by the receiver.
    pub(crate) digest: &'a Digest,
    /// Its length from the manifest; checked here.
    pub(crate) size: u64,
    /// Called with the count of bytes so far.
    pub(crate) on_bytes: &'a dyn Fn(u64),
    /// Called when a broken connection is taken up again.
    pub(crate) on_retry: &'a dyn Fn(&RegistryError),
}

impl Client {
    /// Sends the blob's bytes to `sink`, exactly `size` of them.
    pub(crate) async fn blob(
        &self,
        request: &BlobRequest<'_>,
        sink: Sender<Bytes>,
    ) -> Result<(), RegistryError> {
        let policy = &self.transport.options().network;
        let (mut done, mut failures) = (0, 0);
        loop {
            let before = done;
            let error = match self.blob_from(request, &mut done, &sink).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            failures = if done - before >= GOOD_CONNECTION_BYTES { 1 } else { failures + 1 };
            if !error.is_transient() || failures >= policy.attempts {
                return Err(error);
            }
            (request.on_retry)(&error);
            tokio::time::sleep(policy.wait(failures)).await;
        }
    }

    async fn blob_from(
        &self,
        request: &BlobRequest<'_>,
        done: &mut u64,
        sink: &Sender<Bytes>,
    ) -> Result<(), RegistryError> {
        let mut ask = self.blob_ask(request.digest);
        if *done > 0 {
            let range = HeaderValue::try_from(format!("bytes={done}-"));
            ask.headers.insert(RANGE, range.map_err(|error| RegistryError::Setup(Box::new(error)))?);
        }
        let mut response = self.send(&ask).await?;
        let mut skip = self.check_head(request, &response, *done)?;
        let clean_end =
            [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| response.headers().contains_key(name));
        let mut pace = Pace::new(self.transport.options().network.idle_timeout);
        while let Some(mut chunk) = self.chunk(&mut response, &mut pace).await? {
            let known = skip.min(chunk.len() as u64);
            skip -= known;
            // `known` is at most the chunk's length, so it fits.
            let fresh = chunk.split_off(known as usize);
            if fresh.is_empty() {
                continue;
            }
            let total = *done + fresh.len() as u64;
            if total > request.size {
                return Err(self.size_error(request, total));
            }
            sink.send(fresh).await.map_err(|_| RegistryError::Stopped)?;
            *done = total;
            (request.on_bytes)(total);
        }
        if *done == request.size {
            return Ok(());
        }
        if clean_end {
            return Err(self.size_error(request, *done));
        }
        // Neither length nor chunks: the end of the connection may be an accident.
        Err(RegistryError::Timeout { host: authority(response.url()), what: "send the whole blob" })
    }

    /// How many bytes at the front of the body are known already.
    fn check_head(
        &self,
        request: &BlobRequest<'_>,
        response: &Response,
        done: u64,
    ) -> Result<u64, RegistryError> {
        let bad_range =
            || RegistryError::Range { host: self.host().to_owned(), digest: request.digest.clone() };
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let text = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let (first, total) = text.and_then(parse_content_range).ok_or_else(bad_range)?;
            if total.is_some_and(|total| total != request.size) {
                return Err(self.size_error(request, total.unwrap_or(0)));
            }
            return if first == done && done > 0 { Ok(0) } else { Err(bad_range()) };
        }
        if response.status() != StatusCode::OK {
            return Err(bad_range());
        }
        match response.content_length() {
            Some(length) if length != request.size => Err(self.size_error(request, length)),
            _ => Ok(done),
        }
    }

    fn size_error(&self, request: &BlobRequest<'_>, found: u64) -> RegistryError {
        RegistryError::Size { digest: request.digest.clone(), expected: request.size, found }
    }

    async fn chunk(&self, response: &mut Response, pace: &mut Pace) -> Result<Option<Bytes>, RegistryError> {
        let host = authority(response.url());
        let begun = Instant::now();
        let chunk = match tokio::time::timeout(pace.limit, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| self.transport.error(&host, error))?,
            Err(_) => return Err(RegistryError::Timeout { host, what: "send data" }),
        };
        if pace.is_too_slow(begun.elapsed(), chunk.as_ref().map_or(0, Bytes::len)) {
            return Err(RegistryError::Timeout { host, what: "send data fast enough" });
        }
        Ok(chunk)
    }
}

/// Tells a slow line from a peer that feeds a byte at a time to hold the connection (SECURITY-CASES I15). Only
/// time spent waiting for the peer counts, never the time that our own disk takes.
struct Pace {
    limit: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(limit: Duration) -> Self {
        Self { limit, waited: Duration::ZERO, bytes: 0 }
    }

    fn is_too_slow(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < self.limit {
            return false;
        }
        let least = self.waited.as_millis().saturating_mul(u128::from(MIN_BYTES_PER_SECOND)) / 1000;
        let slow = u128::from(self.bytes) < least;
        *self = Self::new(self.limit);
        slow
    }
}

/// `bytes first-last/total` (RFC 9110, section 14.4); the total may be `*`.
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?);
    let total = if total == "*" { None } else { Some(total.trim().parse::<u64>().ok()?) };
    let sound = first <= last && total.is_none_or(|total| last < total);
    sound.then_some((first, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn content_ranges_are_parsed() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, None)));
        for bad in [
            "",
            "bytes",
            "bytes 5-9",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "bytes -5/10",
            "items 5-9/10",
            "bytes */10",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn i15_a_byte_now_and_then_is_too_slow() {
        let mut pace = Pace::new(Duration::from_secs(30));
        assert!(!pace.is_too_slow(Duration::from_secs(20), 1));
        assert!(pace.is_too_slow(Duration::from_secs(20), 1));
    }

    #[test]
    fn a_slow_line_is_not_too_slow() {
        let mut pace = Pace::new(Duration::from_secs(30));
        for _ in 0..100 {
            assert!(!pace.is_too_slow(Duration::from_secs(1), 1024));
        }
    }

    proptest! {
        #[test]
        fn any_content_range_parses_or_not_without_panic(text in ".{0,60}") {
            parse_content_range(&text);
        }
    }
}
