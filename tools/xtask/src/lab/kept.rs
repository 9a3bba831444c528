//! A machine that serves one command after the other, several at once, and ends itself when nobody asks.
//!
//! Its state lies in `/run/nacre-lab/<hash of tree and image>`: a later call finds port and token there. Whoever
//! starts it holds the lock of that directory, so two calls at once get one machine.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use super::client::{self, Accepted};
use super::image::Image;
use super::machine::{self, Disk, Machine};
use super::{Job, Kind, Stream};
use crate::process::tail;
use crate::project::Project;

/// Seconds without a command after which the machine ends.
const IDLE_S: u32 = 120;

/// The machine boots in about 7 s on an idle core.
const START_LIMIT: Duration = Duration::from_secs(180);

/// What the machine's agent prints when it listens.
const READY: &str = "nacre lab: ready";

/// Runs a job in the kept machine, which is started where it does not run.
pub(super) fn execute(
    project: &Project,
    image: &Image,
    job: &Job,
    sink: &mut dyn FnMut(Stream, &[u8]),
) -> Result<i32> {
    let state = state_dir(project, image)?;
    let lock = fs::File::create(state.join("lock")).context("cannot create the lab's lock")?;
    lock.lock()?;
    let accepted = match running(&state, job, project) {
        Some(accepted) => accepted,
        None => {
            start(project, image, &state)?;
            running(&state, job, project).context("the lab's machine does not answer")?
        }
    };
    drop(lock);
    let status = accepted.finish(job.stdin, sink)?;
    if status == super::TIMED_OUT && job.timeout.is_some() {
        eprintln!("lab: the command ran out of time");
    }
    Ok(status)
}

fn running(state: &Path, job: &Job, project: &Project) -> Option<Accepted> {
    let port = fs::read_to_string(state.join("port")).ok()?.trim().parse().ok()?;
    let token = fs::read_to_string(state.join("token")).ok()?;
    client::send(port, token.trim(), job, project.root.to_str()?)
}

fn state_dir(project: &Project, image: &Image) -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for part in [project.root.as_path(), &project.target, image.dir()] {
        hash.update(part.as_os_str().as_encoded_bytes());
        hash.update([0]);
    }
    hash.update(image.stamp());
    let name: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let dir = Path::new("/run/nacre-lab").join(name);
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

fn start(project: &Project, image: &Image, state: &Path) -> Result<()> {
    let begin = Instant::now();
    for entry in fs::read_dir(state)? {
        let entry = entry?;
        if entry.file_name() != "lock" {
            fs::remove_file(entry.path())?;
        }
    }
    let token = random_token()?;
    let port = free_port()?;
    write_private(&state.join("token"), token.as_bytes())?;
    write_private(&state.join("port"), port.to_string().as_bytes())?;
    let shares = machine::shares(project);
    let path = project.bin_dir();
    let initrd = image.initrd(&[
        ("token", token.as_bytes()),
        ("idle", IDLE_S.to_string().as_bytes()),
        ("shares", machine::shares_text(&shares).as_bytes()),
        ("path", path.as_os_str().as_encoded_bytes()),
    ])?;
    write_private(&state.join("initrd"), &initrd)?;
    let disk = image.disk();
    let machine = Machine {
        image,
        state,
        disk: Disk::Throwaway(&disk),
        kind: Kind::Kept,
        shares,
        extra: vec![
            "-netdev".into(),
            format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:7000"),
            "-device".into(),
            "virtio-net-pci,netdev=net,romfile=".into(),
        ],
    };
    wait_ready(&machine)?;
    eprintln!("    lab: started in {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

fn wait_ready(machine: &Machine<'_>) -> Result<()> {
    let mut running = machine.start()?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if fs::read_to_string(machine.console()).is_ok_and(|text| text.contains(READY)) {
            return Ok(());
        }
        let ended = running.qemu.try_wait()?;
        if ended.is_some() || Instant::now() > deadline {
            running.kill();
            let (log, console) = (tail(&machine.log(), 5), tail(&machine.console(), 10));
            bail!("the lab's machine did not start\n{log}\n{console}");
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn random_token() -> Result<String> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
