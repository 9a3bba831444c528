//! Annotations of the OCI configuration that more than one process reads.

/// `true`: PID 1 of the container is an init that passes signals on and reaps, and the program is its child; `false`,
/// or not there: the program is PID 1.
pub const INIT: &str = "dev.nacre.init";
