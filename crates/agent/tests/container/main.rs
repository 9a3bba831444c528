//! Containers made by the agent's own code on this machine's kernel.
//!
//! They need root and cgroup v2 (a hybrid machine's is enough where no limit is tested). The image is made of this
//! machine's own `/usr`, bound read-only. Cases of the security catalogue carry its ids.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod exec;
mod files;
#[allow(dead_code, reason = "shared with the tests of the server")]
mod fixture;
mod init;
mod isolation;
mod lifecycle;
mod limits;
mod pod;
mod process;
mod security;
mod storage;
mod volumes;
