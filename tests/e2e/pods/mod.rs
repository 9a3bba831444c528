//! Pods under a real containerd, by the calls of a kubelet. All tests below share one [`NODE`], and those that begin with
//! `NODE.share()` one pod too; what needs a containerd of its own is in `pods_alone.rs`.
//!
//! | module | behaviour |
//! |---|---|
//! | [`containers`] | containers: created, started, told, ended, removed |
//! | [`ends`] | exit codes, signals, grace, limits of memory |
//! | [`exec`] | commands in a container, to their end |
//! | [`events`] | what the runtime tells by itself |

mod containers;
mod ends;
mod events;
mod exec;

use nacre_tests::{Containerd, Shared};

/// The node of all tests below this module.
static NODE: Shared = Shared::new(module_path!(), Containerd::with_network);
