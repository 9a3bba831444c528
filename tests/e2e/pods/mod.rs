//! Pods under a real containerd, by the calls of a kubelet. All tests below share one [`NODE`], and those that begin with
//! `NODE.share()` one pod too; what needs a containerd of its own is in `pods_alone.rs`.
//!
//! | module | behaviour |
//! |---|---|
//! | [`lives`] | sandboxes: made, told, stopped, removed, made again |
//! | [`containers`] | containers: created, started, told, ended, removed |
//! | [`ends`] | exit codes, signals, grace, limits of memory |
//! | [`logs`] | the log file of a container |
//! | [`exec`] | commands in a container, to their end |
//! | [`streams`] | exec, attach and port-forward with their streams |
//! | [`processes`] | command, environment, user and groups of a process |
//! | [`security`] | capabilities, seccomp, masked paths, devices, what is refused |
//! | [`sharing`] | what the containers of a pod share, and what they do not |
//! | [`volumes`] | directories and files of the host |
//! | [`users`] | user namespaces |
//! | [`network`] | addresses, ports, names |
//! | [`figures`] | limits and what is used of them |
//! | [`events`] | what the runtime tells by itself |
//! | [`sandbox_api`] | the same by `sandboxer = "shim"` |

pub(crate) mod containers;
pub(crate) mod ends;
mod events;
pub(crate) mod exec;
pub(crate) mod figures;
pub(crate) mod lives;
pub(crate) mod logs;
mod network;
pub(crate) mod processes;
mod sandbox_api;
pub(crate) mod security;
mod sharing;
pub(crate) mod streams;
mod users;
pub(crate) mod volumes;

use nacre_tests::{Containerd, Shared};

/// The node of all tests below this module.
static NODE: Shared = Shared::new(module_path!(), Containerd::with_network);
