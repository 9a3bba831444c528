//! End to end: the installed `nacre` as a person uses it. Run by `cargo xtask e2e`.
//!
//! | module | behaviour |
//! |---|---|
//! | [`run`] | `nacre run`: output, status, options |
//! | [`limits`] | cpu, memory and process limits, as seen inside |
//! | [`detached`] | `run -d` and the commands for what it starts |
//! | [`docker`] | the same under a real Docker daemon, with its networks |
//! | [`containerd`] | the same under a real containerd, by `ctr` |
//! | [`pods`], [`pods_older`] | the same by the calls of a kubelet, with containerd 2.1 and with 1.7 |
//! | [`pods_alone`] | parts of a node that die, and what else needs a containerd of its own |
//! | [`forward`] | from one side of a network namespace to the loopback of the other |
//! | [`volumes`] | what a pod's volumes are: updates, limits, devices, owners |
//! | [`failures`] | bad input and dying parts: one clear line, the right status, nothing left |
//! | [`images`] | `pull`, `images`, `inspect`, `rmi`, `system prune` |

mod containerd;
mod detached;
mod docker;
mod failures;
mod forward;
mod images;
mod limits;
mod pods;
mod pods_alone;
mod pods_older;
mod run;
mod volumes;
