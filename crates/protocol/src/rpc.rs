//! The agent's ttrpc service, generated from `proto/agent.proto`, which documents every message.

#[expect(missing_docs, reason = "generated; the .proto file has the documentation")]
#[allow(
    clippy::all,
    clippy::unwrap_used,
    nonstandard_style,
    unreachable_pub,
    rust_2018_idioms,
    unused,
    reason = "generated"
)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

#[expect(missing_docs, reason = "generated; the .proto file has the documentation")]
#[allow(
    clippy::all,
    clippy::unwrap_used,
    nonstandard_style,
    unreachable_pub,
    rust_2018_idioms,
    unused,
    reason = "generated"
)]
pub mod agent_ttrpc {
    use super::agent;
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}
