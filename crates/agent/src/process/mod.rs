//! Processes: direct children, the reaper, and the table that RPC names them by.
//!
//! ```text
//! Table ── Instance (container) ── Process init ── Child ── exit from the reaper
//!                              └── Process exec ...
//!
//! created ──start──> starting ──> started ──exit──> ended ──delete──> (forgotten)
//!    └──────────────── delete (killed) ────────────────────────────────────┘
//! ```

mod children;
mod create;
mod delete;
mod error;
mod events;
mod instance;
mod oom;
#[expect(clippy::module_inception, reason = "the file is named for the one noun in it")]
mod process;
mod reaper;
mod registry;

pub use children::{Child, Children, Exit, Spawned};
pub use create::{Made, MakeError, Wanted, create_container, create_exec};
pub use delete::{DeleteError, delete_container, delete_exec};
pub use error::ProcessError;
pub use events::Events;
pub use instance::{Instance, Table, Watch};
pub use process::{Ended, Process, Role};
pub use reaper::reap_for_ever;
pub use registry::Reservation;
