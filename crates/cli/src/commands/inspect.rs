//! `nacre inspect`: containers and images as a JSON array.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::ps::{Condition, condition};
use crate::duration;
use crate::record::{Record, RecordError, Records, read_json};
use crate::store;

pub(super) fn run(root: &Path, names: &[String]) -> Result<()> {
    let records = Records::open(root)?;
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for name in names {
        match records.find(name) {
            Ok(record) => found.push(container(&records, &record)?),
            Err(RecordError::NotFound(_)) => match store::open(root)?.inspect(name) {
                Ok(image) => found.push(image),
                Err(error @ nacre_image::StoreError::NotFound(_)) => {
                    tracing::debug!(%error, "neither a container nor an image");
                    missing.push(name.as_str());
                }
                Err(error) => bail!(error),
            },
            Err(error) => bail!(error),
        }
    }
    println!("{:#}", Value::Array(found));
    if !missing.is_empty() {
        bail!("no such container or image: {}", missing.join(", "));
    }
    Ok(())
}

/// The fields of Docker's answer that there is something to say of.
fn container(records: &Records, record: &Record) -> Result<Value> {
    let bundle = records.bundle(&record.id);
    let config: Value = read_json(&bundle.join("config.json"))?;
    let condition = condition(records, record);
    let exit = records.exit(&record.id);
    let exit_code = match condition {
        Condition::Exited { status, .. } => status,
        _ => 0,
    };
    let finished = exit.as_ref().map_or(0, |exit| exit.exited_at_ns / 1_000_000_000);
    let process = &config["process"];
    let resources = &config["linux"]["resources"];
    Ok(json!({
        "Id": record.id,
        "Name": record.name,
        "Created": duration::rfc3339(record.created_s),
        "Image": record.image_id,
        "Path": record.command.first(),
        "Args": record.command.get(1..).unwrap_or_default(),
        "State": {
            "Status": condition.word(),
            "Running": condition == Condition::Running,
            "Paused": condition == Condition::Paused,
            "Dead": condition == Condition::Dead,
            "OOMKilled": exit.as_ref().is_some_and(|exit| exit.oom_killed),
            "ExitCode": exit_code,
            "Error": exit.as_ref().and_then(|exit| exit.failure.clone()).unwrap_or_default(),
            "FinishedAt": if finished > 0 { duration::rfc3339(finished) } else { String::new() },
        },
        "Config": {
            "Hostname": config["hostname"],
            "Image": record.image,
            "User": process["user"]["username"].as_str().unwrap_or_default(),
            "Env": process["env"],
            "WorkingDir": process["cwd"],
            "Tty": record.tty,
            "Labels": record.labels.iter().map(|label| label.split_once('=').unwrap_or((label, "")))
                .collect::<std::collections::BTreeMap<_, _>>(),
        },
        "HostConfig": {
            "AutoRemove": record.remove,
            "NetworkMode": "none",
            "Memory": resources["memory"]["limit"].as_i64().unwrap_or(0),
            "CpuQuota": resources["cpu"]["quota"].as_i64().unwrap_or(0),
            "PidsLimit": resources["pids"]["limit"].as_i64().unwrap_or(0),
            "ReadonlyRootfs": config["root"]["readonly"],
        },
        "Mounts": config["mounts"],
        "Runtime": "io.containerd.nacre.v2",
        "Bundle": bundle,
    }))
}
