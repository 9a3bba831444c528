//! Messages of the Container Runtime Interface, generated from `proto/cri.proto`, which says what they are.

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
mod generated {
    include!(concat!(env!("OUT_DIR"), "/cri.rs"));
}

pub use generated::*;

/// `type_url` of a [`PodSandboxConfig`] in the options of the Sandbox API's CreateSandbox.
pub const POD_SANDBOX_CONFIG: &str = "runtime.v1.PodSandboxConfig";
