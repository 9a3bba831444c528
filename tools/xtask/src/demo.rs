//! `demo`: from nothing to an image of a real registry in its own micro-VM, and a table of what was seen.
//!
//! `tools/demo/demo.sh` does the job where KVM works; this module prepares it and reads what it found.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::install;
use crate::lab::{self, Job, Place};
use crate::packages::{self, Need};
use crate::process::step;
use crate::project::Project;

/// A demo in the emulated machine takes less than a minute on idle cores.
const LIMIT: Duration = Duration::from_secs(600);

/// The phases of `phases.json`, with what a newcomer should read.
const PHASES: &[(&str, &str)] = &[
    ("plan", "plan: read the image's configuration, open its layers"),
    ("vm_start", "VM start: memory, devices, jail"),
    ("kernel", "guest kernel: to its first process"),
    ("agent", "agent: to ready"),
    ("rootfs", "root file system: mount the layers"),
    ("container", "container: namespaces, limits, exec"),
    ("run", "the program itself"),
    ("exit", "exit: take everything down"),
];

/// Builds everything, runs the demo and prints the table.
pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    install::build(project)?;
    let place = lab::place();
    if place == Place::Direct {
        packages::ensure(&[Need::Direct])?;
    }
    let out = project.target.join("demo");
    let script = project.root.join("tools/demo/demo.sh");
    let command = [script.to_string_lossy().into_owned(), out.to_string_lossy().into_owned()];
    let job = Job::new(command).timeout(LIMIT);
    let status = step("demo", || lab::execute(project, place, &job, &mut lab::forward))?;
    if status != 0 {
        bail!("the demo ended with status {status}");
    }
    let facts = read_facts(&out)?;
    print!("{}", table(&facts, place));
    let path = project.target.join("demo.json");
    fs::write(&path, format!("{facts:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    println!("The same facts: {}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// What the script left, as one JSON object.
fn read_facts(out: &Path) -> Result<Value> {
    let read = |name: &str| {
        let path = out.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let inside = inside(&read("facts")?);
    let fact =
        |name: &str| inside.get(name).cloned().with_context(|| format!("the container did not tell {name}"));
    let phases: Value = serde_json::from_str(&read("phases.json")?).context("phases.json is no JSON")?;
    Ok(json!({
        "host_kernel": read("host_kernel")?.trim(),
        "guest_kernel": fact("guest_kernel")?,
        "exit_status": read("exit_status")?.trim().parse::<i64>().context("no exit status")?,
        "limits": {
            "cpus": fact("cpus")?,
            "cpu.max": fact("cpu_max")?,
            "memory.max": fact("memory_max")?,
            "pids.max": fact("pids_max")?,
        },
        "phases_ms": phases,
    }))
}

/// Lines `KEY VALUE...` that the program in the container printed.
fn inside(text: &str) -> BTreeMap<String, String> {
    let pair =
        |line: &str| line.split_once(' ').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    text.lines().filter_map(pair).collect()
}

fn table(facts: &Value, place: Place) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let limits = &facts["limits"];
    let mib = limits["memory.max"].as_str().and_then(|bytes| bytes.parse::<u64>().ok());
    let memory = mib.map_or_else(|| text(&limits["memory.max"]), |bytes| format!("{} MiB", bytes >> 20));
    let machine = match place {
        Place::Direct => "this machine",
        Place::Emulated => "the lab (an emulated machine: its milliseconds are 10 to 30 times a real one's)",
    };
    let mut rows = vec![
        ("where".to_owned(), machine.to_owned()),
        ("kernel of the host".to_owned(), text(&facts["host_kernel"])),
        ("kernel that the container saw".to_owned(), text(&facts["guest_kernel"])),
        (
            "cpus inside (--cpus 1)".to_owned(),
            format!("{}, cpu.max {}", text(&limits["cpus"]), text(&limits["cpu.max"])),
        ),
        ("memory inside (-m 128m)".to_owned(), memory),
        ("processes inside (--pids-limit 64)".to_owned(), text(&limits["pids.max"])),
        ("exit status (the program's: 42)".to_owned(), text(&facts["exit_status"])),
    ];
    for (key, label) in PHASES {
        if let Some(ms) = facts["phases_ms"][key].as_f64() {
            rows.push(((*label).to_owned(), format!("{ms:.1} ms")));
        }
    }
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let mut out = String::from("\n");
    for (label, value) in rows {
        out.push_str(&format!("  {label:width$}  {value}\n"));
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Value {
        json!({
            "host_kernel": "6.1.0-host", "guest_kernel": "6.12.1-guest", "exit_status": 42,
            "limits": {"cpus": "1", "cpu.max": "100000 100000", "memory.max": "134217728", "pids.max": "64"},
            "phases_ms": {"plan": 1.25, "kernel": 80.0},
        })
    }

    #[test]
    fn table_shows_both_kernels_and_each_phase() {
        let table = table(&facts(), Place::Direct);
        for part in ["6.1.0-host", "6.12.1-guest", "128 MiB", "42", "1.2 ms", "80.0 ms"] {
            assert!(table.contains(part), "{part} in {table}");
        }
    }

    #[test]
    fn missing_fact_is_an_error_that_names_it() {
        let out = tempfile::tempdir().unwrap();
        for (name, text) in
            [("facts", "cpus 1\n"), ("phases.json", "{}"), ("host_kernel", "x"), ("exit_status", "0")]
        {
            fs::write(out.path().join(name), text).unwrap();
        }
        assert!(read_facts(out.path()).unwrap_err().to_string().contains("guest_kernel"));
    }
}
