//! The agent: PID 1 of the guest.
//!
//! | module | owns |
//! |---|---|
//! | [`init`] | what PID 1 does before it can serve: mounts, settings, loopback; and the end of the machine |
//! | [`server`] | the control connection to the host, ttrpc on vsock |
//! | `service` | RPC methods: decode, call one domain function, encode |
//! | [`agent`] | what the methods share |
//! | [`process`] | process table, reaper, exit statuses; making and deleting |
//! | [`stream`] | standard streams on raw vsock connections |
//! | [`tunnel`] | from the host's side of the network to the guest's loopback, and back |
//! | [`machine`] | identity, facts, slots, links |
//! | [`container`] | namespaces, cgroup, root file system, the re-executed child |
//! | `log` | lines on the console |
//!
//! A library only so that integration tests can run the server in their own process.

pub mod agent;
pub mod container;
pub mod init;
mod log;
pub mod machine;
pub mod process;
pub mod server;
mod service;
pub mod stream;
mod sys;
pub mod tunnel;
