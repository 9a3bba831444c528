//! A sandbox against the other ends of its sockets: the whole life of a container, and evil guests (H12).
//!
//! The real `sandbox` code runs, with its real protocols, processes and files. Where it starts `nacre-vmm`, it finds a
//! copy of this test program, which then plays VMM, guest and agent ([`guest`]), and so for `nacre-fs`: no KVM is used, though `/dev/kvm` must
//! be there to be opened. What the container's command line says is what the guest does.

#![expect(clippy::unwrap_used, reason = "a test program, though it has its own main")]

mod cases;
mod fixture;
mod guest;
mod pods;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    match Path::new(&program).file_name().and_then(|name| name.to_str()) {
        Some("nacre-vmm") => guest::main(),
        Some("nacre-fs") => guest::file_server(),
        _ => return run_tests(&std::env::args().skip(1).collect::<Vec<_>>()),
    }
    ExitCode::SUCCESS
}

/// As libtest does: a line for each test, the failed ones again, a summary.
fn run_tests(args: &[String]) -> ExitCode {
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let cases: Vec<_> = cases::ALL.iter().filter(|(name, _)| wanted(name)).collect();
    if args.iter().any(|arg| arg == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", cases.len());
    let mut failed = Vec::new();
    for (name, case) in &cases {
        let passed = std::panic::catch_unwind(|| fixture::run(*case)).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        if !passed {
            failed.push(*name);
        }
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    let passed = cases.len() - failed.len();
    let filtered = cases::ALL.len() - cases.len();
    println!(
        "\ntest result: {result}. {passed} passed; {} failed; 0 ignored; 0 measured; {filtered} filtered out\n",
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
