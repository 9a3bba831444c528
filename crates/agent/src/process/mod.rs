//! Processes of the agent: direct children, their exit statuses, and the table that RPC names them by.

mod children;

pub use children::{Child, Children, Exit, Spawned};
