//! `nacre ps`: containers and how they are.

use std::path::Path;

use anyhow::Result;
use containerd_shim_protos::types::task::Status;
use serde_json::json;

use crate::args::{Format, PsArgs};
use crate::duration;
use crate::output::{escape, short_id, table};
use crate::record::{Record, Records};
use crate::shim::Shim;

/// How a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    Created,
    Running,
    Paused,
    Exited {
        status: u32,
        at_s: i64,
    },
    /// Neither a shim nor an exit record: the host went down, or the shim was killed.
    Dead,
}

impl Condition {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited { .. } => "exited",
            Self::Dead => "dead",
        }
    }

    fn text(&self, created_s: i64) -> String {
        let ago = |then: i64| duration::rough(duration::now_s().saturating_sub(then));
        match self {
            Self::Created => "Created".to_owned(),
            Self::Running => format!("Up {}", ago(created_s)),
            Self::Paused => format!("Up {} (Paused)", ago(created_s)),
            Self::Exited { status, at_s } => format!("Exited ({status}) {} ago", ago(*at_s)),
            Self::Dead => "Dead".to_owned(),
        }
    }
}

/// Asks the exit record, then the shim.
pub(super) fn condition(records: &Records, record: &Record) -> Condition {
    let ended = || {
        records.exit(&record.id).map(|exit| Condition::Exited {
            status: exit.exit_status,
            at_s: exit.exited_at_ns / 1_000_000_000,
        })
    };
    if let Some(exited) = ended() {
        return exited;
    }
    let state = super::block_on(async {
        let shim = Shim::connect(&records.bundle(&record.id), &record.id).await?;
        Ok(shim.state().await?)
    });
    match state {
        Ok(state) => match state.status.enum_value_or_default() {
            Status::CREATED => Condition::Created,
            Status::RUNNING => Condition::Running,
            Status::PAUSED | Status::PAUSING => Condition::Paused,
            Status::STOPPED => Condition::Exited { status: state.exit_status, at_s: state.exited_at.seconds },
            Status::UNKNOWN => Condition::Dead,
        },
        // It may have ended between the two looks.
        Err(_) => ended().unwrap_or(Condition::Dead),
    }
}

pub(super) fn run(root: &Path, args: &PsArgs) -> Result<()> {
    let records = Records::open(root)?;
    let mut all: Vec<_> =
        records.list()?.into_iter().map(|record| (condition(&records, &record), record)).collect();
    all.reverse();
    if !args.all {
        all.retain(|(condition, _)| matches!(condition, Condition::Running | Condition::Paused));
    }
    let id =
        |record: &Record| if args.no_trunc { record.id.clone() } else { short_id(&record.id).to_owned() };
    if args.quiet {
        all.iter().for_each(|(_, record)| println!("{}", id(record)));
        return Ok(());
    }
    if args.format == Format::Json {
        for (condition, record) in &all {
            let line = json!({
                "ID": id(record), "Names": record.name, "Image": record.image, "Command": record.command.join(" "),
                "CreatedAt": duration::rfc3339(record.created_s), "State": condition.word(),
                "Status": condition.text(record.created_s),
            });
            println!("{line}");
        }
        return Ok(());
    }
    let rows = all.iter().map(|(condition, record)| {
        let created = duration::rough(duration::now_s().saturating_sub(record.created_s));
        let command: String = escape(&record.command.join(" ")).chars().take(20).collect();
        [
            id(record),
            record.image.clone(),
            format!("\"{command}\""),
            format!("{created} ago"),
            condition.text(record.created_s),
            record.name.clone(),
        ]
    });
    println!("{}", table(["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"], rows.collect()));
    Ok(())
}
