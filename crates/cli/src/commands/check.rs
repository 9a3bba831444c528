//! `nacre check`: can this machine run micro-VMs, and what to do where it cannot.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::args::CheckArgs;
use crate::probe::{self, Verdict};

/// The status is 0 where a container can be run, 1 where not.
pub(super) fn run(root: &Path, args: &CheckArgs) -> Result<u8> {
    let findings = probe::look(root);
    let bad = findings.iter().any(|finding| finding.verdict == Verdict::Bad);
    if args.json {
        println!("{}", json!({ "usable": !bad, "findings": findings }));
        return Ok(bad.into());
    }
    for finding in &findings {
        let word = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Bad => "PROBLEM",
        };
        println!("{:<8} {:<15} {}", word, finding.what, finding.found);
        if !finding.advice.is_empty() {
            println!("{:<24} -> {}", "", finding.advice);
        }
    }
    println!("\n{}", if bad { "nacre cannot run a micro-VM here." } else { "nacre can run micro-VMs here." });
    Ok(bad.into())
}
