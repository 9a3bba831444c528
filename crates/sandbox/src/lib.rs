//! Host lifecycle of a sandbox: OCI configuration -> plan -> VM -> agent -> container, and down again.
pub mod agent;
pub mod assets;
pub mod cgroup;
pub mod channel;
pub mod config;
pub mod file_server;
pub mod jail;
pub mod plan;
pub mod process;
pub mod record;
pub mod socket;
pub mod state;
pub mod stdio;
pub mod storage;
mod sys;
pub mod tail;
pub mod text;
pub mod vm;
