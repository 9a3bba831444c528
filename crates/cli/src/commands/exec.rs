//! `nacre exec`: a further process in a running container.

use std::path::Path;

use anyhow::{Context, Result, bail};
use containerd_shim_protos::api::ExecProcessRequest;
use nacre_protocol::task::Leave;
use serde_json::{Value, json};

use super::run::{leave_behind, start_error};
use crate::args::ExecArgs;
use crate::attach::Outcome;
use crate::record::{Records, read_json};
use crate::shim::{self, Shim};
use crate::stdio::{Fifos, RawTerminal, window};
use crate::{attach, names, spec};

/// `type_url` under which containerd sends an OCI process.
const PROCESS_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// Runs the process; the status is its exit status.
pub(super) fn run(root: &Path, args: &ExecArgs) -> Result<u8> {
    let records = Records::open(root)?;
    let record = records.find(&args.container)?;
    let bundle = records.bundle(&record.id);
    if records.exit(&record.id).is_some() {
        bail!("container {} is not running", record.name);
    }
    let config: Value = read_json(&bundle.join("config.json"))?;
    let process = process(args, &config)?;
    let exec_id: String = names::new_id().context("cannot draw an exec id")?.chars().take(32).collect();
    super::block_on(async {
        let shim = Shim::connect(&bundle, &record.id).await?;
        if args.detach {
            shim.exec(request(&exec_id, args, [String::new(), String::new(), String::new()], &process)?)
                .await?;
            shim.start(&exec_id).await.map_err(start_error)?;
            return match shim.leave(&Leave { exec_id, ..Leave::default() }).await {
                // The container may have ended meanwhile, and the process with it.
                Err(error) if !error.is_gone() => Err(error.into()),
                _ => Ok(0),
            };
        }
        attached(&shim, &bundle, &exec_id, args, &process).await
    })
}

async fn attached(shim: &Shim, bundle: &Path, exec_id: &str, args: &ExecArgs, process: &Value) -> Result<u8> {
    let fifos = Fifos::make(bundle, &format!("{exec_id}-"), args.interactive, args.tty)?;
    let readers = fifos.open_readers()?;
    shim.exec(request(exec_id, args, fifos.paths(), process)?).await?;
    let started = async {
        let terminal = if args.tty { RawTerminal::enter(args.interactive)? } else { None };
        shim.start(exec_id).await.map_err(start_error)?;
        Ok::<_, anyhow::Error>(terminal)
    };
    let terminal = match started.await {
        Ok(terminal) => terminal,
        Err(error) => {
            // The exec was never started: forgetting it is all that is left to do.
            let _ = shim.delete(exec_id).await;
            return Err(error);
        }
    };
    let copies = readers.start()?;
    let stdin = fifos.copy_stdin(args.tty.then(|| args.detach_keys.clone()))?;
    let waited = attach::until_exit(shim, exec_id, args.tty, stdin).await;
    if let Ok(Outcome::Detached) = waited {
        leave_behind(shim, &Leave { exec_id: exec_id.to_owned(), ..Leave::default() }, copies, terminal)
            .await?;
        return Ok(0);
    }
    drop(terminal);
    let deleted = shim.delete(exec_id).await;
    let written = copies.finish();
    let Outcome::Exited(status) = waited? else { return Ok(0) };
    deleted?;
    written.context("cannot write the process's output")?;
    Ok(u8::try_from(status).unwrap_or(u8::MAX))
}

fn request(
    exec_id: &str,
    args: &ExecArgs,
    [stdin, stdout, stderr]: [String; 3],
    process: &Value,
) -> Result<ExecProcessRequest> {
    Ok(ExecProcessRequest {
        exec_id: exec_id.to_owned(),
        terminal: args.tty,
        stdin,
        stdout,
        stderr,
        spec: shim::any(PROCESS_TYPE_URL, serde_json::to_vec(process)?),
        ..Default::default()
    })
}

/// The container's own process with what the options change.
fn process(args: &ExecArgs, config: &Value) -> Result<Value> {
    let mut process = config["process"].clone();
    if !process.is_object() {
        bail!("the container's configuration has no process");
    }
    let image: Vec<String> = serde_json::from_value(process["env"].clone()).unwrap_or_default();
    process["args"] = json!(args.command);
    process["terminal"] = json!(args.tty);
    process["env"] = json!(spec::environment(&image, &args.env, &args.env_file, args.tty, None)?);
    if let Some(dir) = &args.workdir {
        process["cwd"] = json!(dir);
    }
    if let Some(user) = &args.user {
        process["user"] = spec::user(user)?;
    }
    if args.privileged {
        let all = spec::all_capabilities();
        process["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
    }
    if let Some(object) = process.as_object_mut() {
        object.remove("consoleSize");
        if let Some((width, height)) = window().filter(|_| args.tty) {
            object.insert("consoleSize".into(), json!({ "width": width, "height": height }));
        }
    }
    Ok(process)
}
