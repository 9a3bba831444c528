//! `nacre`: run OCI images, each container in a micro-VM of its own.
//!
//! Owns the person's door: Docker's words, the OCI configuration that they mean, and what is printed. It owns no
//! VM: `run` starts `containerd-shim-nacre-v2` and speaks the containerd Task API to it, as containerd does.
//!
//! ```text
//! main -> commands/<verb>.rs -> image (pull, find) | spec (options -> config.json) | record (what -d left)
//!                            -> shim (Task API client) -> containerd-shim-nacre-v2
//! ```

mod args;
mod attach;
mod commands;
mod detach;
mod duration;
mod etc;
mod names;
mod output;
mod probe;
mod progress;
mod record;
mod shim;
mod spec;
mod stdio;
mod store;

use std::process::ExitCode;

use clap::Parser;

/// Exit status of nacre's own failures, as Docker's.
pub(crate) const EXIT_NACRE: u8 = 125;

fn main() -> ExitCode {
    init_log();
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let asked = !error.use_stderr();
            // Nothing is left to do where even the help cannot be printed.
            let _ = error.print();
            return ExitCode::from(if asked { 0 } else { EXIT_NACRE });
        }
    };
    match commands::run(args) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("nacre: {}", output::error_line(&error));
            ExitCode::from(error.downcast_ref::<commands::Exit>().map_or(EXIT_NACRE, |exit| exit.0))
        }
    }
}

fn init_log() {
    let Ok(filter) = std::env::var("NACRE_LOG") else { return };
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
