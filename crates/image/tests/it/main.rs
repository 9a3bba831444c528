//! Whole pulls and imports, against a registry of ours that is as good or as bad as each test wants.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod accidents;
mod auth;
mod hostile;
mod import;
mod pull;
mod removal;
mod support;
