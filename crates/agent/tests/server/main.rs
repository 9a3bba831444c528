//! The whole agent but for its boot: a client talks ttrpc to the server, which makes real containers on this
//! machine's kernel. Needs root, as the tests of containers do.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

#[path = "../container/fixture.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of containers")]
mod fixture;
#[allow(unreachable_pub, reason = "a module of this test alone")]
mod host;

mod hostile;
mod lifecycle;
mod limits;
mod streams;
