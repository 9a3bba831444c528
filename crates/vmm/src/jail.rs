//! What keeps a taken-over VMM harmless (B2 in `docs/threat-model.md`).

use std::sync::atomic::{AtomicBool, Ordering};

pub mod seccomp;

/// Set once the process is jailed: from then on each new thread restricts itself before it runs.
static SHUT: AtomicBool = AtomicBool::new(false);

/// Whether new threads must restrict themselves.
pub(crate) fn is_shut() -> bool {
    SHUT.load(Ordering::Acquire)
}
