//! Entry point: PID 1 of the guest, or one of its re-executed children.

use std::process::ExitCode;

use nacre_agent::{container, init};

fn main() -> ExitCode {
    let verb = std::env::args_os().nth(1);
    match verb.as_deref().and_then(|verb| verb.to_str()) {
        // The kernel passes what it does not know of its command line to init.
        None => boot(),
        Some("launcher") => ExitCode::from(container::launcher_main()),
        Some(_) if std::process::id() == 1 => boot(),
        Some(other) => {
            eprintln!("nacre-agent: unknown verb {other:?}: launcher is for the agent's own child");
            ExitCode::FAILURE
        }
    }
}

fn boot() -> ExitCode {
    let result = init::run();
    if let Err(error) = &result {
        let error: &dyn std::error::Error = error;
        let causes: Vec<_> =
            std::iter::successors(Some(error), |error| error.source()).map(|e| e.to_string()).collect();
        eprintln!("nacre-agent: {}", causes.join(": "));
    }
    init::restart();
    // Not PID 1, or a kernel that does not restart: as PID 1 this ends in its panic, which restarts as well.
    ExitCode::FAILURE
}
