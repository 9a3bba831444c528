//! `nacre-fs` as a process, seen by its owner and by guests that send what no kernel would.
//!
//! | module | what |
//! |---|---|
//! | [`process`], [`guest`] | the process with its sockets; the driver that plays a guest |
//! | [`cache`] | pages that are kept from one open to the next |
//! | [`change`] | shares that come and go |
//! | [`start`] | the start message, the jail, the end |
//! | [`init`] | what is negotiated |
//! | [`names`] | names that are no names |
//! | [`nodes`] | node ids and handles that were never given out, forgetting, devices, links |
//! | [`messages`] | messages that are cut, too long, unknown |
//! | [`submounts`] | what is mounted below a share, before and after its start |
//! | [`read_only`] | every writing request against a read-only share |
#![allow(missing_docs, reason = "a test")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod cache;
mod change;
mod guest;
mod init;
mod messages;
mod names;
mod nodes;
mod process;
mod read_only;
mod start;
mod submounts;
