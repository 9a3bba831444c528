//! The half of the benchmark that runs where KVM works: it only measures and writes down every sample.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nacre_tests::{Traces, pids};
use serde_json::Value;

use super::containerd::Pods;
use super::memory;
use crate::emulator::Watch;
use crate::lab::{self, Kind};
use crate::process::{command, output, run};
use crate::project::Project;

/// Copies of busybox that make up a stream: some 256 MiB, and no two blocks in a row alike.
const STREAM_COPIES: usize = 128;

/// The same of 1 GiB.
const LONG_STREAM_COPIES: usize = 531;

/// Runs one after the other that must leave nothing behind.
const SEQUENTIAL: usize = 100;

/// Guest memory is this and the guest's own share (64 MiB): 128 MiB in all.
const MEMORY: &str = "64m";

/// Every sample of each figure.
pub(super) type Samples = BTreeMap<String, Vec<f64>>;

/// What one machine measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Starts and idle containers.
    Rounds,
    /// What many runs leave behind.
    Sequential,
    /// Standard output.
    Streams,
    /// Starts and idle pods, under containerd.
    Pods,
    /// Standard output of 1 GiB, through containerd.
    PodStreams,
}

impl Part {
    /// The figure that each round adds last.
    fn last_key(self) -> &'static str {
        match self {
            Self::Rounds => "guest_rss_kib",
            Self::Sequential => "left_behind",
            Self::Streams => "stdout_ratio_to_runc",
            Self::Pods => "fs_pss_kib",
            Self::PodStreams => "pod_stdout_ratio",
        }
    }

    /// Rounds that count.
    fn rounds(self) -> usize {
        match self {
            Self::PodStreams => 5,
            Self::Rounds | Self::Sequential | Self::Streams | Self::Pods => 10,
        }
    }

    /// Where it is measured. A GiB takes the counted machine some ten minutes, and a program, its pipe and its reader have
    /// a processor each on any other.
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::PodStreams => Kind::Fresh,
            Self::Rounds | Self::Sequential | Self::Streams | Self::Pods => Kind::Counted,
        }
    }

    /// Longest time without a word of progress. About one counted machine in ten hangs in the emulator.
    pub(super) fn silence(self) -> Duration {
        match self {
            Self::PodStreams => Duration::from_secs(4 * 60),
            Self::Rounds | Self::Sequential | Self::Streams | Self::Pods => Duration::from_secs(8 * 60),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rounds => "rounds",
            Self::Sequential => "sequential",
            Self::Streams => "streams",
            Self::Pods => "pods",
            Self::PodStreams => "pod-streams",
        }
    }
}

/// Status of a command whose VM is gone: 128 and SIGKILL.
const KILLED: i32 = 137;

/// A stream ended with its VM: all that had arrived was intact.
#[derive(Debug)]
struct VmGone {
    arrived: usize,
}

impl std::fmt::Display for VmGone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the VM ended by itself after {} intact bytes of the stream", self.arrived)
    }
}

impl std::error::Error for VmGone {}

/// Measures what a part still lacks in `results`, and writes it there after each round: a machine that hangs in a later
/// one takes nothing of it along, nor does one that the emulator has a fault on: a triple fault of the guest is one, and looks like a guest
/// that switches itself off.
pub(crate) fn measure(project: &Project, part: Part, results: &Path) -> Result<ExitCode> {
    // Not where the clock counts what it costs.
    let watch = (part.kind() == Kind::Fresh).then(Watch::begin);
    let Err(error) = rounds(project, part, results) else { return Ok(ExitCode::SUCCESS) };
    let faults = watch.map(|watch| watch.faults()).unwrap_or_default();
    if faults.is_empty() && error.downcast_ref::<VmGone>().is_none() {
        return Err(error);
    }
    eprintln!("    {error:#}; {}", faults.join(", "));
    Ok(ExitCode::from(lab::TIMED_OUT as u8))
}

fn rounds(project: &Project, part: Part, results: &Path) -> Result<()> {
    let samples: Samples = match fs::read(results) {
        Ok(text) => serde_json::from_slice(&text).context("the samples are no JSON")?,
        Err(_) => Samples::new(),
    };
    let sheet = Sheet { samples, results, part };
    match part {
        Part::Sequential => {
            let left = Bench::prepare(project)?.sequential()?;
            sheet.only("left_behind", left)
        }
        Part::Rounds => {
            let bench = Bench::prepare(project)?;
            sheet.rounds(|samples| {
                bench.starts(samples)?;
                bench.idle(samples)
            })
        }
        Part::Streams => {
            let bench = Bench::prepare(project)?;
            let expected = Stream::expected(STREAM_COPIES)?;
            sheet.rounds(|samples| bench.stream(&expected, samples))
        }
        Part::Pods => {
            let bench = Pods::prepare();
            sheet.rounds(|samples| bench.round(samples))
        }
        Part::PodStreams => {
            let bench = Pods::prepare();
            let expected = Stream::expected(LONG_STREAM_COPIES)?;
            sheet.rounds(|samples| bench.stream(&expected, samples))
        }
    }
}

/// Where samples are written down.
struct Sheet<'a> {
    samples: Samples,
    results: &'a Path,
    part: Part,
}

impl Sheet<'_> {
    /// A figure that is measured once.
    fn only(mut self, key: &str, value: f64) -> Result<()> {
        self.samples.insert(key.to_owned(), vec![value]);
        write(&self.samples, self.results)
    }

    /// Rounds until there are enough.
    fn rounds(mut self, mut round: impl FnMut(&mut Samples) -> Result<()>) -> Result<()> {
        let name = self.part.name();
        // The first one on a machine warms its caches.
        let mut warm = false;
        loop {
            let done = self.samples.get(self.part.last_key()).map_or(0, Vec::len);
            if done >= self.part.rounds() {
                return Ok(());
            }
            match warm {
                true => eprintln!("    {name} {} of {}", done + 1, self.part.rounds()),
                false => eprintln!("    {name}: warming up"),
            }
            let mut one = Samples::new();
            round(&mut one)?;
            if warm {
                for (key, values) in one {
                    self.samples.entry(key).or_default().extend(values);
                }
                write(&self.samples, self.results)?;
            }
            warm = true;
        }
    }
}

fn write(samples: &Samples, results: &Path) -> Result<()> {
    fs::write(results, serde_json::to_vec(samples)?)
        .with_context(|| format!("cannot write {}", results.display()))
}

/// Everything that is measured, in memory: waiting for the host would be counted in the host's time.
struct Bench {
    dir: tempfile::TempDir,
    image: String,
}

impl Bench {
    fn prepare(project: &Project) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("nacre-bench-").tempdir_in("/tmp")?;
        let copy = |from: &Path, name: &str| run(command("cp", ["-a"]).arg(from).arg(dir.path().join(name)));
        copy(&project.install_dir(), "nacre")?;
        copy(&project.target.join("demo/image"), "image")?;
        let archive = format!("oci:{}:python", dir.path().join("image").display());
        let mut bench = Self { image: String::new(), dir };
        bench.make_bundle()?;
        // From here on by the name that it has in the store.
        bench.image = output(bench.nacre().args(["pull", "-q", &archive]))?.trim().to_owned();
        Ok(bench)
    }

    /// An OCI bundle with the same busybox, for the peers that take no images.
    fn make_bundle(&self) -> Result<()> {
        let bundle = self.bundle();
        let bin = bundle.join("rootfs/bin");
        fs::create_dir_all(&bin)?;
        for dir in ["dev", "proc", "sys", "etc", "tmp"] {
            fs::create_dir_all(bundle.join("rootfs").join(dir))?;
        }
        fs::copy("/usr/bin/busybox", bin.join("busybox")).context("no busybox on this machine")?;
        for applet in ["sh", "true", "cat", "seq"] {
            std::os::unix::fs::symlink("busybox", bin.join(applet))?;
        }
        run(command("runc", ["spec"]).current_dir(&bundle))?;
        self.set_bundle_command(&["/bin/true"])
    }

    fn set_bundle_command(&self, words: &[&str]) -> Result<()> {
        let path = self.bundle().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = words.into();
        fs::write(&path, serde_json::to_vec(&config)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    fn nacre(&self) -> Command {
        let mut nacre = Command::new(self.dir.path().join("nacre/bin/nacre"));
        nacre.env("NACRE_ROOT", self.dir.path().join("root")).stdin(Stdio::null());
        nacre
    }

    fn peer(&self, runtime: &str) -> Command {
        let mut peer = command(runtime, ["run", "--bundle"]);
        peer.arg(self.bundle()).arg("bench").stdin(Stdio::null());
        peer
    }

    /// One start of each runtime, whole command; then one of ours in a small VM by phase.
    fn starts(&self, samples: &mut Samples) -> Result<()> {
        add(samples, "run_cold_ms", time(self.nacre().args(["run", "--rm", &self.image, "true"]))?);
        add(samples, "runc_run_ms", time(&mut self.peer("runc"))?);
        add(samples, "crun_run_ms", time(&mut self.peer("crun"))?);

        let phases = self.dir.path().join("phases.json");
        let mut nacre = self.nacre();
        nacre.args(["run", "--rm", "-m", MEMORY, "--phases"]).arg(&phases).args([&self.image, "true"]);
        add(samples, "run_128_mib_ms", time(&mut nacre)?);
        let phases: BTreeMap<String, f64> =
            serde_json::from_slice(&fs::read(&phases)?).context("phases.json is no table of numbers")?;
        let phase = |name: &str| phases.get(name).copied().with_context(|| format!("no phase {name}"));
        let to_ready = phase("vm_start")? + phase("kernel")? + phase("agent")?;
        add(samples, "vm_start_to_agent_ready_ms", to_ready);
        add(samples, "agent_init_ms", phase("agent")?);
        add(samples, "container_create_ms", phase("create_in_guest")?);
        for (name, ms) in &phases {
            add(samples, &format!("phase_{name}_ms"), *ms);
        }
        Ok(())
    }

    /// The memory of a container that does nothing.
    fn idle(&self, samples: &mut Samples) -> Result<()> {
        let (vmms, shims) = (pids("nacre-vmm"), pids("containerd-shim"));
        let id = output(self.nacre().args(["run", "-d", "-m", MEMORY, &self.image, "sleep", "1000"]))?;
        let id = id.trim();
        // Free page reporting gives back in the two seconds after the last page was freed.
        std::thread::sleep(Duration::from_secs(5));
        let one = |before, name| -> Result<u32> {
            let new: Vec<u32> = pids(name).difference(before).copied().collect();
            ensure!(new.len() == 1, "{} processes {name} instead of one", new.len());
            Ok(new[0])
        };
        let vmm = memory::of(one(&vmms, "nacre-vmm")?)?;
        let shim = memory::of(one(&shims, "containerd-shim")?)?;
        add(samples, "host_pss_kib", vmm.own_pss_kib + shim.own_pss_kib);
        add(samples, "vmm_pss_kib", vmm.own_pss_kib);
        add(samples, "guest_rss_kib", vmm.guest_kib);
        run(self.nacre().args(["rm", "-f", id]).stdout(Stdio::null()))
    }

    /// Throughput of standard output, ours and then runc's.
    fn stream(&self, expected: &Stream, samples: &mut Samples) -> Result<()> {
        let script = expected.script();
        self.set_bundle_command(&["/bin/sh", "-c", &script])?;
        let mut nacre = self.nacre();
        nacre.args(["run", "--rm", &self.image, "sh", "-c", &script]);
        let ours = expected.time(&mut nacre)?;
        let runc = expected.time(&mut self.peer("runc"))?;
        add(samples, "stdout_ratio_to_runc", runc / ours);
        add(samples, "stdout_ms", ours);
        add(samples, "runc_stdout_ms", runc);
        Ok(())
    }

    /// What many runs one after the other leave on the machine.
    fn sequential(&self) -> Result<f64> {
        let before = Traces::now();
        for number in 1..=SEQUENTIAL {
            run(self.nacre().args(["run", "--rm", &self.image, "true"]))?;
            if number % 20 == 0 {
                eprintln!("    {number} of {SEQUENTIAL} sequential runs");
            }
        }
        let left = before.left_behind();
        for trace in &left {
            eprintln!("    left behind: {trace}");
        }
        Ok(left.len() as f64)
    }
}

pub(super) fn add(samples: &mut Samples, key: &str, value: f64) {
    samples.entry(key.to_owned()).or_default().push(value);
}

/// Milliseconds of a whole command that must succeed.
pub(super) fn time(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    run(command)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// What must come out of a command: one piece again and again.
pub(super) struct Stream {
    piece: Vec<u8>,
    pieces: usize,
}

impl Stream {
    /// What both sides of a comparison print.
    fn expected(pieces: usize) -> Result<Self> {
        Ok(Self { piece: fs::read("/usr/bin/busybox")?, pieces })
    }

    /// For a shell whose root has the same busybox.
    pub(super) fn script(&self) -> String {
        format!("for i in $(seq {}); do cat /bin/busybox; done", self.pieces)
    }

    /// Milliseconds until all of it has arrived and the command has ended. What arrives is compared byte by byte: as good as a
    /// digest of it, at a fraction of its cost on an emulated machine.
    pub(super) fn time(&self, command: &mut Command) -> Result<f64> {
        let mut buffer = vec![0; 64 << 10];
        let (mut arrived, mut intact) = (0, true);
        let start = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut stdout = child.stdout.take().context("standard output is no pipe")?;
        loop {
            let count = stdout.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            intact &= self.is_at(arrived, &buffer[..count]);
            arrived += count;
        }
        let status = child.wait()?;
        let elapsed = start.elapsed().as_secs_f64() * 1e3;
        let length = self.piece.len() * self.pieces;
        ensure!(intact && arrived <= length, "the stream arrived damaged: {arrived} bytes of {length}");
        if status.code() == Some(KILLED) {
            bail!(VmGone { arrived });
        }
        ensure!(status.success(), "the stream's command failed: {status}");
        ensure!(arrived == length, "the stream is not whole: {arrived} bytes of {length}");
        Ok(elapsed)
    }

    /// Whether these bytes are what the stream has from an offset on.
    fn is_at(&self, offset: usize, mut bytes: &[u8]) -> bool {
        let mut at = offset % self.piece.len();
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(self.piece.len() - at));
            if now != &self.piece[at..at + now.len()] {
                return false;
            }
            (at, bytes) = (0, rest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_compared_across_pieces() {
        let stream = Stream { piece: b"abc".to_vec(), pieces: 9 };
        for (offset, bytes, same) in [
            (0, "abcab", true),
            (2, "cabcabca", true),
            (5, "c", true),
            (5, "", true),
            (5, "a", false),
            (0, "abcac", false),
        ] {
            assert_eq!(stream.is_at(offset, bytes.as_bytes()), same, "{bytes} at {offset}");
        }
    }
}
