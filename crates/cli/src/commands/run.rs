//! `nacre run`: pull, make the bundle, create, start, wait.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use containerd_shim_protos::api::{CreateTaskRequest, Mount};
use nacre_image::Store;
use nacre_protocol::task::{
    EXIT_FILE, ExitRecord, LOG_SCHEME, Leave, OPTIONS_TYPE_URL, OnExit, PHASES_FILE, TaskOptions,
};

use super::Exit;
use super::kill::parse_signal;
use crate::args::RunArgs;
use crate::attach::Outcome;
use crate::record::{Record, Records, read_json, write_json};
use crate::shim::{self, Shim, ShimError};
use crate::spec::{self, Identity};
use crate::stdio::{Copies, Fifos, RawTerminal, window};
use crate::store::{self, LocalImage};
use crate::{attach, duration, etc, names, probe};

/// Name of a detached container's log in its bundle.
pub(super) const LOG_FILE: &str = "log.jsonl";

/// Runs a container; the status is its process's, or 0 for one in the background.
pub(super) fn run(root: &Path, args: &RunArgs) -> Result<u8> {
    if args.tty && args.interactive && args.detach {
        tracing::debug!("a detached container's terminal has no input");
    }
    if let Some(why) = probe::emulation() {
        bail!("no VM can run here: {why}");
    }
    let store = store::open(root)?;
    let image = store::find_or_pull(&store, &args.image, args.pull, args.insecure)?;
    let records = Records::open(root)?;
    let container = Container::prepare(&records, args, &image)?;
    if let Err(error) = store::lease(&store, &container.record.id, &image) {
        container.undo(&records, &store);
        return Err(error);
    }
    if let Some(path) = &args.cidfile
        && let Err(error) = write_cidfile(path, &container.record.id)
    {
        container.undo(&records, &store);
        return Err(error);
    }
    let outcome = super::block_on(async {
        if args.detach {
            container.run_detached(&image).await
        } else {
            container.run_attached(&image, args).await
        }
    });
    match outcome {
        Ok(Outcome::Detached) => {
            if args.detach {
                println!("{}", container.record.id);
            }
            Ok(0)
        }
        Ok(Outcome::Exited(status)) => {
            let copied = copy_phases(&container.bundle, args.phases.as_deref());
            let status = u8::try_from(status).unwrap_or(u8::MAX);
            if args.rm {
                records.remove(&container.record.id)?;
                store.release(&container.record.id)?;
            }
            copied.map(|()| status)
        }
        Err(error) => {
            container.undo(&records, &store);
            Err(error)
        }
    }
}

/// A container on disk that has no shim yet.
struct Container {
    record: Record,
    bundle: PathBuf,
}

impl Container {
    /// Makes the record and the bundle, or nothing.
    fn prepare(records: &Records, args: &RunArgs, image: &LocalImage) -> Result<Self> {
        let id = names::new_id().context("cannot draw a container id")?;
        let hostname = args.hostname.clone().unwrap_or_else(|| id.chars().take(12).collect());
        check_hostname(&hostname)?;
        let mut config = spec::build(args, &image.defaults, &Identity { id: &id, hostname: &hostname })?;
        if args.tty
            && let Some((width, height)) = window()
        {
            config["process"]["consoleSize"] = serde_json::json!({ "width": width, "height": height });
        }
        let stop_signal = args.stop_signal.as_deref().unwrap_or(&image.stop_signal);
        if !stop_signal.is_empty() {
            parse_signal(stop_signal)?;
        }
        let record = Record {
            name: args.name.clone().unwrap_or_else(|| names::from_id(&id)),
            image: args.image.clone(),
            image_id: image.id.clone(),
            command: spec::command_line(args.entrypoint.as_deref(), &args.command, &image.defaults)?,
            created_s: duration::now_s(),
            tty: args.tty,
            detached: args.detach,
            remove: args.rm,
            stop_signal: stop_signal.to_owned(),
            labels: args.label.clone(),
            id,
        };
        let bundle = records.create(&record)?;
        let container = Self { record, bundle };
        if let Err(error) = container.fill(&config, &hostname) {
            records.remove(&container.record.id)?;
            return Err(error);
        }
        Ok(container)
    }

    fn fill(&self, config: &serde_json::Value, hostname: &str) -> Result<()> {
        etc::write(&self.bundle, hostname)?;
        write_json(&self.bundle.join("config.json"), config)?;
        let rootfs = self.bundle.join("rootfs");
        fs::create_dir(&rootfs).with_context(|| format!("cannot create {}", rootfs.display()))
    }

    /// Takes back all that a failed run has made: shim, VM, bundle.
    fn undo(&self, records: &Records, store: &Store) {
        // The shim cleans up behind itself when it still can; where it cannot, its `delete` does.
        if self.bundle.join("address").exists()
            && let Err(error) = shim::clean_up(&self.bundle, &self.record.id)
        {
            eprintln!("nacre: cannot clean up after the container: {error}");
        }
        if let Err(error) = records.remove(&self.record.id) {
            eprintln!("nacre: {error}");
        }
        if let Err(error) = store.release(&self.record.id) {
            eprintln!("nacre: {error}");
        }
    }

    fn request(
        &self,
        image: &LocalImage,
        [stdin, stdout, stderr]: [String; 3],
        on_exit: OnExit,
    ) -> Result<CreateTaskRequest> {
        let layers = image.layers.iter().map(|path| Mount {
            type_: "erofs".to_owned(),
            source: path.display().to_string(),
            options: vec!["ro".to_owned()],
            ..Default::default()
        });
        Ok(CreateTaskRequest {
            bundle: self.bundle.display().to_string(),
            rootfs: layers.collect(),
            terminal: self.record.tty,
            stdin,
            stdout,
            stderr,
            options: shim::any(
                OPTIONS_TYPE_URL,
                serde_json::to_vec(&TaskOptions { on_exit, no_links: true })?,
            ),
            ..Default::default()
        })
    }

    /// Starts the container and leaves it to its shim.
    async fn run_detached(&self, image: &LocalImage) -> Result<Outcome> {
        let log = self.log();
        let stderr = if self.record.tty { String::new() } else { log.clone() };
        let request = self.request(image, [String::new(), log, stderr], self.when_left())?;
        let address = shim::start(&self.bundle, &self.record.id)?;
        let shim = Shim::connect_to(&address, &self.record.id).await?;
        let started = async {
            shim.create(request).await?;
            shim.start("").await
        };
        if let Err(error) = started.await {
            end(&shim).await;
            return Err(start_error(error));
        }
        Ok(Outcome::Detached)
    }

    /// Where the output goes that nobody is there to read.
    fn log(&self) -> String {
        format!("{LOG_SCHEME}://{}", self.bundle.join(LOG_FILE).display())
    }

    /// What the shim does by itself when the container has ended and nobody is there.
    fn when_left(&self) -> OnExit {
        if self.record.remove { OnExit::Remove } else { OnExit::Shutdown }
    }

    /// Starts the container, joins its streams to ours and waits for its end.
    async fn run_attached(&self, image: &LocalImage, args: &RunArgs) -> Result<Outcome> {
        let fifos = Fifos::make(&self.bundle, "", args.interactive, args.tty)?;
        let readers = fifos.open_readers()?;
        let request = self.request(image, fifos.paths(), OnExit::Wait)?;
        let address = shim::start(&self.bundle, &self.record.id)?;
        let shim = Shim::connect_to(&address, &self.record.id).await?;
        if let Err(error) = shim.create(request).await {
            end(&shim).await;
            return Err(start_error(error));
        }
        let copies = readers.start()?;
        let terminal = if args.tty { RawTerminal::enter(args.interactive)? } else { None };
        if let Err(error) = shim.start("").await {
            drop(terminal);
            end(&shim).await;
            return Err(start_error(error));
        }
        let stdin = fifos.copy_stdin(args.tty.then(|| args.detach_keys.clone()))?;
        match attach::until_exit(&shim, "", args.tty, stdin).await {
            Ok(Outcome::Detached) => {
                let leave = Leave { output: self.log(), on_exit: self.when_left(), ..Leave::default() };
                leave_behind(&shim, &leave, copies, terminal).await?;
                Ok(Outcome::Detached)
            }
            waited => {
                drop(terminal);
                self.finish(&shim, waited, copies, args.phases.is_some()).await
            }
        }
    }

    /// Ends the shim and tells a failure of the VM as such. The VM's last moments are not waited for, since nobody
    /// needs their result; but where the phases are asked for, the last of them is.
    async fn finish(
        &self,
        shim: &Shim,
        waited: Result<Outcome, ShimError>,
        copies: Copies,
        wait_for_phases: bool,
    ) -> Result<Outcome> {
        if waited.is_err() {
            shim.shutdown(true).await;
        }
        // Until the last byte is out, the shim must not end.
        let written = copies.finish();
        let deleted = if wait_for_phases { shim.delete("").await.map(drop) } else { Ok(()) };
        shim.shutdown(true).await;
        let failure =
            read_json::<ExitRecord>(&self.bundle.join(EXIT_FILE)).ok().and_then(|exit| exit.failure);
        if let Some(failure) = failure {
            bail!("the container's VM failed: {failure}");
        }
        let outcome = waited?;
        deleted?;
        written.context("cannot write the container's output")?;
        Ok(outcome)
    }
}

/// Leaves a process to itself, with its output up to now on the screen.
pub(super) async fn leave_behind(
    shim: &Shim,
    leave: &Leave,
    copies: Copies,
    terminal: Option<RawTerminal>,
) -> Result<()> {
    let left = shim.leave(leave).await;
    drop(terminal);
    left.context("cannot leave the process")?;
    // The shim has closed its ends of the fifos.
    copies.finish().context("cannot write the process's output")
}

/// Ends a shim whose container did not start. An error tells that it is gone, which is what is wanted.
async fn end(shim: &Shim) {
    let _ = shim.delete("").await;
    shim.shutdown(true).await;
}

/// A failed start with Docker's status: 127 for a program that is not there, 126 for one that cannot be run.
pub(super) fn start_error(error: ShimError) -> anyhow::Error {
    let text = error.to_string();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    // The second is a script whose interpreter is not there.
    let status = if has(&["executable file not found"])
        || (text.starts_with("exec:") && has(&["no such file or directory"]))
    {
        127
    } else if text.contains("exec") && has(&["permission denied", "exec format error", "is a directory"]) {
        126
    } else {
        crate::EXIT_NACRE
    };
    anyhow::Error::new(error).context(Exit(status))
}

/// RFC 1123 and what sethostname(2) takes; it becomes part of the environment too (C13).
fn check_hostname(name: &str) -> Result<()> {
    let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
    if name.is_empty() || name.len() > 63 || !name.bytes().all(good) {
        bail!("invalid host name {name:?}: at most 63 letters, digits, '-', '.' and '_'");
    }
    Ok(())
}

fn write_cidfile(path: &Path, id: &str) -> Result<()> {
    use std::io::Write;
    let file = fs::File::options().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(id.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn copy_phases(bundle: &Path, target: Option<&Path>) -> Result<()> {
    let Some(target) = target else { return Ok(()) };
    let from = bundle.join(PHASES_FILE);
    fs::copy(&from, target)
        .with_context(|| format!("cannot copy {} to {}", from.display(), target.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::ttrpc::Code;

    use super::*;

    fn status_of(message: &str) -> u8 {
        start_error(ShimError::Refused(message.into(), Code::UNKNOWN)).downcast_ref::<Exit>().unwrap().0
    }

    #[test]
    fn start_failures_have_dockers_statuses() {
        assert_eq!(status_of("exec: \"nope\": executable file not found in $PATH"), 127);
        assert_eq!(status_of("exec: \"/script\": no such file or directory"), 127);
        assert_eq!(status_of("cannot read /x: no such file or directory"), 125);
        assert_eq!(status_of("exec: \"/etc/passwd\": permission denied"), 126);
        assert_eq!(status_of("guest kernel is missing"), 125);
    }

    #[test]
    fn c13_hostname_with_a_newline_is_refused() {
        assert!(check_hostname("a\nb").is_err() && check_hostname("").is_err());
        assert!(check_hostname("web-1.example").is_ok());
    }
}
