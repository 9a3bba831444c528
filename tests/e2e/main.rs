//! End to end: the installed `nacre` as a person uses it. Run by `cargo xtask e2e`.
//!
//! | module | behaviour |
//! |---|---|
//! | [`run`] | `nacre run`: output, status, options |
//! | [`limits`] | cpu, memory and process limits, as seen inside |
//! | [`detached`] | `run -d` and the commands for what it starts |
//! | [`failures`] | bad input and dying parts: one clear line, the right status, nothing left |
//! | [`images`] | `pull`, `images`, `inspect`, `rmi`, `system prune` |

mod containerd;
mod detached;
mod failures;
mod images;
mod limits;
mod run;
