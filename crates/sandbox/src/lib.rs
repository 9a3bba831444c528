//! Host lifecycle of a sandbox: OCI configuration -> plan -> VM -> agent -> container, and down again.
pub mod assets;
pub mod config;
pub mod plan;
pub mod state;
pub mod text;
