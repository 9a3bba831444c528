//! A machine for one command: it boots, runs it, gives its output and status, and ends.
//!
//! Used by tests that look at the whole machine, where the clock counts instructions (a TCP channel's timers would
//! run wild there, since an idle clock jumps; virtio-serial has none), and for the one boot that writes to the image.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::image::Image;
use super::machine::{self, Disk, Machine, Share};
use super::{Job, Stream, TIMED_OUT};
use crate::process::tail;
use crate::project::Project;

/// Outputs of the machine: names of its virtio-serial ports.
const PORTS: [&str; 3] = ["out", "err", "rc"];

/// For a job that names no limit.
const DEFAULT_LIMIT: Duration = Duration::from_secs(3600);

/// Runs a job in a fresh machine. Without a time limit it gets one hour.
///
/// About one instruction-counted run in ten hangs in the emulator before the command prints anything; such a
/// run shows as a timeout, and the caller may repeat it.
pub(super) fn execute(
    project: &Project,
    image: &Image,
    job: &Job,
    sink: &mut dyn FnMut(Stream, &[u8]),
) -> Result<i32> {
    let disk = image.disk();
    let shares = machine::shares(project);
    let path = project.bin_dir();
    boot(image, Disk::Throwaway(&disk), shares, path.to_str(), job, sink)
}

/// Runs a job with the disk writable, and no shares.
pub(super) fn execute_writable(
    image: &Image,
    disk: &Path,
    job: &Job,
    sink: &mut dyn FnMut(Stream, &[u8]),
) -> Result<i32> {
    boot(image, Disk::Kept(disk), Vec::new(), None, job, sink)
}

fn boot(
    image: &Image,
    disk: Disk<'_>,
    shares: Vec<Share>,
    path: Option<&str>,
    job: &Job,
    sink: &mut dyn FnMut(Stream, &[u8]),
) -> Result<i32> {
    let state = tempfile::Builder::new().prefix("nacre-lab-").tempdir()?;
    let command =
        format!("exec {}\n", job.command.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "));
    let text = machine::shares_text(&shares);
    let mut files = vec![("command", command.as_bytes())];
    if !shares.is_empty() {
        files.push(("shares", text.as_bytes()));
    }
    if let Some(path) = path {
        files.push(("path", path.as_bytes()));
    }
    if matches!(disk, Disk::Kept(_)) {
        files.push(("writable", b""));
    }
    fs::write(state.path().join("initrd"), image.initrd(&files)?)?;
    let mut listeners = Vec::new();
    let mut extra = vec!["-device".to_owned(), "virtio-serial-pci,max_ports=4".to_owned()];
    for port in PORTS {
        let socket = state.path().join(format!("{port}.sock"));
        listeners.push(UnixListener::bind(&socket)?);
        let chardev = format!("socket,id={port},path={}", socket.display());
        let device = format!("virtserialport,chardev={port},name=lab.{port}");
        extra.extend(["-chardev".into(), chardev, "-device".into(), device]);
    }
    let machine = Machine { image, state: state.path(), disk, kind: job.kind, shares, extra };
    follow(&machine, listeners, job, sink)
}

enum Piece {
    Output(Stream, Vec<u8>),
    Status(Vec<u8>),
}

fn follow(
    machine: &Machine<'_>,
    listeners: Vec<UnixListener>,
    job: &Job,
    sink: &mut dyn FnMut(Stream, &[u8]),
) -> Result<i32> {
    let mut running = machine.start()?;
    let (send, receive) = mpsc::channel();
    for (index, listener) in listeners.into_iter().enumerate() {
        let send = send.clone();
        // QEMU connects while it starts; where it fails before, `receive` runs into the end of the process.
        std::thread::spawn(move || {
            if let Ok((mut stream, _)) = listener.accept() {
                read_port(index, &mut stream, &send);
            }
        });
    }
    drop(send);
    let deadline = Instant::now() + job.timeout.unwrap_or(DEFAULT_LIMIT);
    let mut heard = Instant::now();
    let mut status = Vec::new();
    loop {
        match receive.recv_timeout(Duration::from_millis(500)) {
            Ok(Piece::Output(stream, bytes)) => {
                heard = Instant::now();
                sink(stream, &bytes);
            }
            Ok(Piece::Status(bytes)) => status.extend(bytes),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            // QEMU is gone and a port says nothing more: it was never connected.
            Err(mpsc::RecvTimeoutError::Timeout) if running.qemu.try_wait()?.is_some() => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let hangs = job.silence.is_some_and(|silence| heard.elapsed() > silence);
        if hangs || Instant::now() > deadline {
            running.kill();
            tell_of_faults(machine);
            let why = if hangs { "says nothing any more" } else { "ran out of time" };
            eprintln!("lab: the command {why}");
            return Ok(TIMED_OUT);
        }
    }
    let ended = running.qemu.wait()?;
    running.reap();
    tell_of_faults(machine);
    let text = String::from_utf8_lossy(&status);
    if text.trim().is_empty() {
        let (log, console) = (tail(&machine.log(), 5), tail(&machine.console(), 15));
        bail!("the lab's machine ended without a status ({ended})\n{log}\n{console}");
    }
    text.trim().parse().context("the lab's machine gave no status")
}

/// A fault of the machine's own kernel, which the emulator makes now and then in the thread of a vCPU, is not the end of the
/// machine: the VM that it met hangs, and what waits for it runs out of time.
fn tell_of_faults(machine: &Machine<'_>) {
    let console = std::fs::read(machine.console()).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    for fault in faults(&console) {
        eprintln!("lab: the machine's own kernel had a fault, and a VM may hang of it: {fault}");
    }
}

/// What each fault was, and whom it met.
fn faults(console: &str) -> Vec<String> {
    let mut lines = console.lines();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        let Some((_, what)) = line.split_once("Oops: ") else { continue };
        let whom = lines.next().and_then(|line| line.split_once(" Comm: "));
        let whom = whom.and_then(|(_, rest)| rest.split_whitespace().next()).unwrap_or("somebody");
        found.push(format!("{what} in {whom}"));
    }
    found
}

fn read_port(index: usize, stream: &mut dyn Read, send: &mpsc::Sender<Piece>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let bytes = buffer[..length].to_vec();
        let piece = match index {
            0 => Piece::Output(Stream::Out, bytes),
            1 => Piece::Output(Stream::Err, bytes),
            _ => Piece::Status(bytes),
        };
        if send.send(piece).is_err() {
            return;
        }
    }
}

/// Passes two pipes on until both have ended.
pub(super) fn pump(
    out: Option<impl Read + Send + 'static>,
    err: Option<impl Read + Send + 'static>,
    sink: &mut dyn FnMut(Stream, &[u8]),
) {
    let (send, receive) = mpsc::channel();
    let errors = send.clone();
    std::thread::spawn(move || out.map(|mut out| read_port(0, &mut out, &send)));
    std::thread::spawn(move || err.map(|mut err| read_port(1, &mut err, &errors)));
    for piece in receive {
        if let Piece::Output(stream, bytes) = piece {
            sink(stream, &bytes);
        }
    }
}

/// A word as a shell takes it back unchanged.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_come_back_unchanged() {
        for word in ["", "plain", "two words", "it's", "$HOME `x` \\ \"q\"", "new\nline"] {
            let script = format!("printf %s {}", quote(word));
            let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(out.stdout, word.as_bytes());
        }
    }

    #[test]
    fn faults_of_a_kernel_are_told_with_whom_they_met() {
        let console = "[    6.0] BUG: TASK stack guard page was hit at 1\n\
                       [    6.1] Oops: stack guard page: 0000 [#1] PREEMPT SMP NOPTI\n\
                       [    6.2] CPU: 0 UID: 2000037339 PID: 2526 Comm: vcpu0 Tainted: G            E\n\
                       [  397.9] CPU: 0 UID: 0 PID: 0 Comm: swapper/0 Tainted: G            E";
        assert_eq!(faults(console), ["stack guard page: 0000 [#1] PREEMPT SMP NOPTI in vcpu0"]);
        assert!(faults("[    1.0] kvm: unhandled").is_empty());
    }
}
