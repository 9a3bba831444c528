//! `containerd-shim-nacre-v2`: containerd's Task API and Sandbox API in front of a sandbox.
//!
//! ```text
//! containerd, nacre --exec--> shim -id X start ---fork---> server: Task API on a Unix socket, one sandbox
//!                             `- prints the address, exits      `- ends with its sandbox
//! containerd, nacre --exec--> shim -id X delete: takes down what a dead server left
//! ```
//!
//! | module | job |
//! |---|---|
//! | [`args`] | command line in Go's style |
//! | [`start`], [`delete`], [`info`] | the actions |
//! | [`serve`] | the server process: listener, signals, end |
//! | [`service`], [`sandbox`] | the Task API and the Sandbox API: decode, call, encode |
//! | [`convert`], [`error`], [`metrics`] | types and errors of both sides |
//! | [`publisher`] | events to containerd |

mod args;
mod convert;
mod delete;
mod error;
mod info;
mod log;
mod metrics;
mod publisher;
mod sandbox;
mod serve;
mod service;
mod socket;
mod start;
mod sys;

use std::process::ExitCode;

use args::{Action, Args};

fn main() -> ExitCode {
    let result =
        Args::parse(std::env::args().skip(1)).map_err(anyhow::Error::from).and_then(|args| {
            match args.action {
                Action::Start => start::start(&args),
                Action::Delete => delete::delete(&args),
                Action::Info => info::info(),
                Action::Version => {
                    println!("{}: {}", args::NAME, env!("CARGO_PKG_VERSION"));
                    Ok(())
                }
            }
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows this text to whoever asked.
            eprintln!("{}: {error:#}", args::NAME);
            ExitCode::FAILURE
        }
    }
}
