//! `-info`: what containerd 2 asks of a runtime before it uses it.

use std::io::Write;

use anyhow::{Context as _, Result};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;

use crate::args::NAME;

/// Prints a RuntimeInfo message. The options on standard input change nothing of it.
pub(crate) fn info() -> Result<()> {
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..RuntimeVersion::default() };
    let info = RuntimeInfo { name: NAME.to_owned(), version: Some(version).into(), ..RuntimeInfo::default() };
    let bytes = info.write_to_bytes().context("cannot encode")?;
    std::io::stdout().write_all(&bytes).context("cannot print")
}
