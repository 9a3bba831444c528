//! containerd-stress: containers of containerd's own stress program, some at once, and what is left after them.
//!
//! Its workers create, start and delete containers whose process is `true` until they are told to stop. Then nothing of
//! it may be on the machine: no process, mount, cgroup, socket, link or file of nacre's, no object of containerd's. What only
//! grows is told beside it (`growth.rs`): it decides nothing, since the kernel's and containerd's figures go up and down.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nacre_tests::{Containerd, Traces};
use serde::{Deserialize, Serialize};

use super::growth::{self, Kept, Memory, Sample};
use super::{Options, programs};
use crate::emulator;
use crate::lab::{self, Job, Kind, Place};
use crate::process::step;
use crate::project::Project;

/// The image, in the registry that `stress.sh` starts.
const IMAGE: &str = "127.0.0.1:5000/stress:latest";

/// For a container on an emulated machine under load, several at once.
const LIMIT_EACH: Duration = Duration::from_secs(30);

/// Starting and ending of the machine and of what is needed there.
const EXTRA: Duration = Duration::from_secs(15 * 60);

/// Containers of one emulated machine: each of them has a chance of one in 50 to 150 to meet a fault of the emulator's.
const EMULATED: u32 = 25;

/// Longest time without ten more containers: the machine itself hangs.
const SILENCE: Duration = Duration::from_secs(4 * 60);

/// Machines that so many containers may use up.
const TRIES: u32 = 8;

/// Machines of a whole run that may hang without a trace of the emulator's.
const MAX_HANGS: usize = 2;

/// The hidden half, where KVM works.
#[derive(Args)]
pub(crate) struct Inside {
    /// Directory with the programs and for the result
    out: PathBuf,
    /// Containers to start
    containers: u32,
    /// How many at once
    concurrency: u32,
}

/// What was seen.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    containers: u32,
    concurrency: u32,
    failures: Vec<String>,
    seconds: f64,
    /// Traces of nacre and objects of containerd that were not there before.
    left: Vec<String>,
    memory: Vec<Memory>,
    /// Before and after.
    kept: (Kept, Kept),
    /// What the emulator did, after which nothing of the above says anything.
    #[serde(default)]
    emulator: Vec<String>,
}

/// Runs it, on an emulated machine in shares with a machine each; whether all containers ran and nothing is left.
pub(super) fn run(project: &Project, place: Place, options: &Options) -> Result<bool> {
    step("stress: build", || programs::stress(project))?;
    super::critest::images(project, place)?;
    let most = if place == Place::Emulated { EMULATED } else { options.containers };
    let (mut holds, mut done, mut replaced) = (true, 0, Replaced::default());
    while done < options.containers {
        let share = most.min(options.containers - done);
        let found = on_a_machine(project, place, (share, options.concurrency), &mut replaced)?;
        print!("{}", table(&found));
        holds &= found.failures.is_empty() && found.left.is_empty();
        done += share;
        println!("  {done} of {} containers", options.containers);
    }
    for cause in replaced.faults.iter().chain(&replaced.hangs) {
        println!("  another machine was taken: {cause}");
    }
    Ok(holds)
}

/// Machines that others took the place of, by the cause.
#[derive(Default)]
struct Replaced {
    /// With a trace of the emulator's.
    faults: Vec<String>,
    /// Without one: a defect of nacre's would look the same, so there must not be many.
    hangs: Vec<String>,
}

/// Runs a share on a machine of its own. One that is at fault itself is replaced, and what was seen there does not count.
fn on_a_machine(
    project: &Project,
    place: Place,
    (containers, concurrency): (u32, u32),
    replaced: &mut Replaced,
) -> Result<Found> {
    let dir = programs::directory(project);
    let own = std::env::current_exe().context("cannot tell where xtask is")?;
    let words = [
        project.root.join("tools/conformance/stress.sh").display().to_string(),
        dir.display().to_string(),
        own.display().to_string(),
        containers.to_string(),
        concurrency.to_string(),
    ];
    let job = Job { kind: Kind::Fresh, silence: Some(SILENCE), ..Job::new(words) };
    let job = job.timeout(limit(containers) + EXTRA);
    for _ in 0..TRIES {
        // What an earlier run left must not pass for this one's.
        let _ = fs::remove_file(result(&dir));
        match step("stress", || lab::execute(project, place, &job, &mut lab::forward)) {
            Ok(0) => {}
            Ok(lab::TIMED_OUT) if place == Place::Emulated && replaced.hangs.len() < MAX_HANGS => {
                eprintln!("    it hangs: another machine goes on");
                replaced.hangs.push("it hung".to_owned());
                continue;
            }
            Ok(status) => bail!("the stress run ended with status {status}"),
            // On a machine that is not emulated this program is the other half's parent, and would have its status.
            Err(error) if place == Place::Emulated => {
                eprintln!("    {error:#}\n    another machine goes on");
                replaced.faults.push("it ended by itself".to_owned());
                continue;
            }
            Err(error) => return Err(error),
        }
        let found = fs::read(result(&dir)).context("the stress run left no result")?;
        let found: Found = serde_json::from_slice(&found).context("the stress run's result is no JSON")?;
        if place == Place::Direct || found.emulator.is_empty() {
            return Ok(found);
        }
        let faults = found.emulator.join(", ");
        eprintln!("    {faults}: another machine goes on");
        replaced.faults.push(format!("{faults}; {} failures", found.failures.len()));
    }
    bail!("{TRIES} machines ended by faults of their own")
}

fn limit(containers: u32) -> Duration {
    LIMIT_EACH.saturating_mul(containers)
}

fn result(out: &Path) -> PathBuf {
    out.join("stress.json")
}

/// Starts a containerd, the stress program, and looks.
pub(crate) fn measure(inside: &Inside) -> Result<()> {
    let containerd = Containerd::without_images();
    let pid = containerd.pid().context("containerd does not run")?;
    let watch = emulator::Watch::begin();
    // The first container makes directories that all sandboxes share and that stay, and its image stays.
    drive(inside, &containerd, 1, 1, &mut Vec::new())?;
    let (traces, objects, before) = (Traces::now(), objects(&containerd), Kept::now(pid));
    let mut samples = Vec::new();
    let begin = Instant::now();
    let failures = drive(inside, &containerd, inside.containers, inside.concurrency, &mut samples)?;
    let all = begin.elapsed();
    let mut left = traces.left_behind();
    left.extend(self::objects(&containerd).difference(&objects).cloned());
    let found = Found {
        containers: inside.containers,
        concurrency: inside.concurrency,
        failures,
        seconds: all.as_secs_f64(),
        left,
        memory: growth::quarters(&samples, all),
        kept: (before, Kept::now(pid)),
        emulator: watch.faults(),
    };
    let path = result(&inside.out);
    fs::write(&path, format!("{:#}\n", serde_json::to_value(&found)?))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Everything that containerd knows of, in the stress program's namespace.
fn objects(containerd: &Containerd) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for list in [
        &["containers", "ls", "-q"][..],
        &["tasks", "ls", "-q"],
        &["snapshots", "ls"],
        &["leases", "ls", "-q"],
    ] {
        let out = containerd.ctr(&[&["-n", "stress"], list].concat()).ok();
        found.extend(out.stdout.lines().map(|line| format!("{}: {line}", list[0])));
    }
    let tasks = containerd.path("state/io.containerd.runtime.v2.task/stress");
    let bundles = fs::read_dir(tasks).into_iter().flatten().flatten();
    found.extend(bundles.map(|entry| format!("bundle: {}", entry.file_name().to_string_lossy())));
    found
}

/// Lets the stress program start so many containers, then end what it is at. Returns what it calls failures.
fn drive(
    inside: &Inside,
    containerd: &Containerd,
    containers: u32,
    concurrency: u32,
    samples: &mut Vec<Sample>,
) -> Result<Vec<String>> {
    let mut stress = Command::new(inside.out.join("bin/containerd-stress"))
        .arg("--address")
        .arg(containerd.path("sock"))
        .args(["--debug", "--runtime", "io.containerd.nacre.v2", "--image", IMAGE])
        .args(["--concurrent", &concurrency.to_string()])
        .arg(format!("--duration={}s", limit(containers.max(10)).as_secs()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run containerd-stress")?;
    let pid = containerd.pid().context("containerd does not run")?;
    let log = stress.stderr.take().context("no pipe from containerd-stress")?;
    let is_over = AtomicBool::new(false);
    let (failures, seen) = thread::scope(|scope| {
        let sampler = scope.spawn(|| growth::watch(pid, &is_over));
        let failures = follow(log, &stress, containers);
        is_over.store(true, Ordering::Relaxed);
        (failures, sampler.join().unwrap_or_default())
    });
    samples.extend(seen);
    let status = stress.wait()?;
    let mut failures = failures?;
    if !status.success() {
        failures.push(format!("containerd-stress ended with {status}"));
    }
    Ok(failures)
}

/// Counts the containers that its log tells of, and has it end when there are enough.
fn follow(log: ChildStderr, stress: &Child, containers: u32) -> Result<Vec<String>> {
    let (mut started, mut failures) = (0, Vec::new());
    for line in BufReader::new(log).lines() {
        let line = line.context("cannot read what containerd-stress says")?;
        if line.contains("level=error") || line.contains("level=fatal") {
            failures.push(line);
        } else if line.contains("starting container ") {
            started += 1;
            if started % 10 == 0 {
                println!("{started} containers");
            }
            if started == containers {
                let interrupt = Command::new("kill").args(["-INT", &stress.id().to_string()]).status();
                interrupt.context("cannot run kill")?;
            }
        }
    }
    if started < containers {
        failures.push(format!("it started {started} containers of {containers}"));
    }
    Ok(failures)
}

fn table(found: &Found) -> String {
    let each = found.seconds / f64::from(found.containers.max(1));
    let mut text = format!(
        "\n  {} containers, {} at once: {:.0} s, one every {each:.1} s; {} failures, {} things left\n",
        found.containers,
        found.concurrency,
        found.seconds,
        found.failures.len(),
        found.left.len()
    );
    text.push_str(
        "  resident in each quarter of the time, the guest's memory apart, in KiB: median (largest)\n",
    );
    found.memory.iter().for_each(|memory| text.push_str(&memory.line()));
    text.push_str(&found.kept.0.lines(&found.kept.1));
    for line in found.failures.iter().chain(&found.left) {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told() {
        let found = Found {
            containers: 100,
            concurrency: 4,
            failures: Vec::new(),
            seconds: 250.0,
            left: vec!["mount x".to_owned()],
            memory: growth::quarters(&[], Duration::from_secs(250)),
            kept: (Kept::now(1), Kept::now(1)),
            emulator: Vec::new(),
        };
        let text = table(&found);
        assert!(text.contains("one every 2.5 s; 0 failures, 1 things left"), "{text}");
        assert!(text.contains("  mount x\n"), "{text}");
    }
}
