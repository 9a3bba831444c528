//! The agent: PID 1 of the guest.
//!
//! | module | owns |
//! |---|---|
//! | `init` | what PID 1 does before it can serve: mounts, loopback, settings |
//! | `server` | the control connection to the host, ttrpc on vsock |
//! | `service` | RPC methods: decode, call one domain function, encode |
//! | [`process`] | process table, reaper, exit statuses |
//! | [`stream`] | standard streams on raw vsock connections |
//! | [`container`] | namespaces, cgroup, root file system, the re-executed child |
//!
//! A library only so that integration tests can run the server in their own process.

pub mod process;
