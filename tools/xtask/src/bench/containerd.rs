//! Pods and containers under containerd, ours and runc's in turn.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nacre_tests::cri::{Cri, Pod, Wish};
use nacre_tests::images::IMAGE;
use nacre_tests::{Containerd, pids};

use super::inside::{Samples, Stream, add, time};
use super::memory;

/// Names of runtimes as the CRI has them, and what the keys of their figures begin with.
const RUNTIMES: [(&str, &str); 2] = [("nacre", ""), ("runc", "runc_")];

/// A containerd with the image, everything in memory.
pub(super) struct Pods {
    containerd: Containerd,
    cri: Cri,
    logs: PathBuf,
}

impl Pods {
    pub(super) fn prepare() -> Self {
        let containerd = Containerd::with_cri();
        let (cri, logs) = (containerd.cri(), containerd.path("logs"));
        Self { containerd, cri, logs }
    }

    /// A pod of each runtime, and a container of `ctr`.
    pub(super) fn round(&self, samples: &mut Samples) -> Result<()> {
        for (runtime, prefix) in RUNTIMES {
            self.pod(runtime, prefix, samples)?;
        }
        for (runtime, prefix) in RUNTIMES {
            let mut run = self.ctr_run(runtime, &["/bin/true"]);
            add(samples, &format!("{prefix}ctr_run_ms"), time(run.stdout(Stdio::null()))?);
        }
        for key in ["pod_start", "exec"] {
            ratio(samples, &format!("{key}_ms"), &format!("{key}_ratio"));
        }
        ratio(samples, "shim_pss_kib", "shim_pss_ratio");
        Ok(())
    }

    fn pod(&self, runtime: &str, prefix: &str, samples: &mut Samples) -> Result<()> {
        let programs = ["containerd-shim", "nacre-vmm", "nacre-fs"];
        let before = programs.map(pids);
        let mut phase = |name: &str, since: Instant| {
            let ms = since.elapsed().as_secs_f64() * 1e3;
            add(samples, &format!("{prefix}{name}_ms"), ms);
        };
        let start = Instant::now();
        let pod = Pod::run_with(&self.cri, runtime, "bench", &self.logs);
        phase("phase_pod_sandbox", start);
        let sandbox_is_there = Instant::now();
        let container = pod.start("app", Wish::sh("exec sleep 100000"));
        phase("phase_first_container", sandbox_is_there);
        phase("pod_start", start);

        // The first exec of a container reads what later ones find in memory.
        pod.exec(&container, &["/bin/true"]).ok();
        let exec = Instant::now();
        pod.exec(&container, &["/bin/true"]).ok();
        phase("exec", exec);

        // Free page reporting gives back in the two seconds after the last page was freed.
        std::thread::sleep(Duration::from_secs(5));
        let new = |at: usize| pids(programs[at]).difference(&before[at]).copied().collect::<BTreeSet<u32>>();
        add(samples, &format!("{prefix}shim_pss_kib"), memory_of(&new(0))?);
        if prefix.is_empty() {
            add(samples, "vmm_pss_kib", memory_of(&new(1))?);
            add(samples, "fs_pss_kib", memory_of(&new(2))?);
        }
        pod.end();
        Ok(())
    }

    /// Throughput of standard output, ours and then runc's.
    pub(super) fn stream(&self, expected: &Stream, samples: &mut Samples) -> Result<()> {
        for (runtime, prefix) in RUNTIMES {
            let script = expected.script();
            let ms = expected.time(&mut self.ctr_run(runtime, &["sh", "-c", &script]))?;
            add(samples, &format!("{prefix}pod_stdout_ms"), ms);
        }
        let (ours, runc) = (samples["pod_stdout_ms"][0], samples["runc_pod_stdout_ms"][0]);
        add(samples, "pod_stdout_ratio", runc / ours);
        Ok(())
    }

    fn ctr_run(&self, runtime: &str, command: &[&str]) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a").arg(self.containerd.path("sock")).args(["-n", "k8s.io", "run", "--rm", "--runtime"]);
        ctr.arg(format!("io.containerd.{runtime}.v2"))
            .args([IMAGE, "bench"])
            .args(command)
            .stdin(Stdio::null());
        ctr
    }
}

/// Ours divided by runc's, in this round.
fn ratio(samples: &mut Samples, key: &str, to: &str) {
    let ratio = samples[key][0] / samples[&format!("runc_{key}")][0];
    add(samples, to, ratio);
}

/// Of the one process that is new.
fn memory_of(pids: &BTreeSet<u32>) -> Result<f64> {
    let names: Vec<String> =
        pids.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()).collect();
    ensure!(pids.len() == 1, "{} new processes instead of one: {names:?}", pids.len());
    Ok(memory::of(*pids.iter().next().unwrap_or(&0))?.own_pss_kib)
}
