//! Samples become figures: median, spread, and the bar that each must hold.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::inside::Samples;
use crate::lab::Place;

/// Which side of its bar a figure must be on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// Measured beside the others, for comparison.
    None,
}

/// A figure's key, its bar, and what it is.
pub(super) type Figure = (&'static str, Bar, &'static str);

/// Every figure of the table, in its order.
pub(super) const NACRE: &[Figure] = &[
    ("vm_start_to_agent_ready_ms", Bar::AtMost(130.0), "nacre-vmm start to agent ready, cold, 128 MiB"),
    ("agent_init_ms", Bar::AtMost(10.0), "agent's share: exec of init to ready"),
    ("run_cold_ms", Bar::AtMost(200.0), "nacre run --rm IMAGE true, whole command"),
    ("runc_run_ms", Bar::None, "runc run of the same program"),
    ("crun_run_ms", Bar::None, "crun run of the same program"),
    ("container_create_ms", Bar::AtMost(12.0), "container creation in the guest, request to exec"),
    ("host_pss_kib", Bar::AtMost(8192.0), "PSS of shim and VMM, without guest memory, idle"),
    ("guest_rss_kib", Bar::AtMost(40960.0), "guest memory resident, idle"),
    ("stdout_ratio_to_runc", Bar::AtLeast(0.5), "throughput of stdout, ours / runc's"),
    ("left_behind", Bar::AtMost(0.0), "left by 100 runs in a row"),
];

/// The same of pods.
pub(super) const CONTAINERD: &[Figure] = &[
    ("pod_start_ms", Bar::None, "RunPodSandbox and its first container, of a warm image"),
    ("runc_pod_start_ms", Bar::None, "the same with runc"),
    ("pod_start_ratio", Bar::AtMost(1.6), "ours / runc's"),
    ("ctr_run_ms", Bar::None, "ctr run --rm IMAGE true"),
    ("runc_ctr_run_ms", Bar::None, "the same with runc"),
    ("exec_ms", Bar::None, "ExecSync of true"),
    ("runc_exec_ms", Bar::None, "the same with runc"),
    ("exec_ratio", Bar::AtMost(2.0), "ours / runc's"),
    ("shim_pss_kib", Bar::AtMost(5120.0), "PSS of the shim of a pod, idle"),
    ("shim_pss_ratio", Bar::AtMost(1.0), "ours / that of containerd-shim-runc-v2"),
    ("vmm_pss_kib", Bar::AtMost(4096.0), "PSS of the VMM without guest memory, idle"),
    ("fs_pss_kib", Bar::AtMost(4096.0), "PSS of the file server, idle"),
    ("pod_stdout_ms", Bar::None, "1 GiB by ctr run ... cat (on two processors, real time)"),
    ("runc_pod_stdout_ms", Bar::None, "the same with runc"),
    ("pod_stdout_ratio", Bar::AtLeast(0.5), "throughput of 1 GiB by ctr run ... cat, ours / runc's"),
];

impl Bar {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bar) => value <= bar,
            Self::AtLeast(bar) => value >= bar,
            Self::None => true,
        }
    }
}

impl std::fmt::Display for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(bar) => write!(f, "<= {bar}"),
            Self::AtLeast(bar) => write!(f, ">= {bar}"),
            Self::None => f.write_str("-"),
        }
    }
}

/// Middle and ends of a list of samples.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
    count: usize,
}

fn spread(samples: &[f64]) -> Option<Spread> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let median = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0;
    Some(Spread { median, min, max, count })
}

/// All figures of a run.
pub(super) struct Report {
    figures: Vec<&'static Figure>,
    spreads: BTreeMap<String, Spread>,
    place: Place,
}

impl Report {
    /// Of all figures, or of those that there are samples of.
    ///
    /// # Errors
    /// Where a figure of the table has no sample.
    pub(super) fn new(
        samples: &Samples,
        figures: &'static [Figure],
        all: bool,
        place: Place,
    ) -> Result<Self> {
        let spreads: BTreeMap<String, Spread> =
            samples.iter().filter_map(|(key, values)| Some((key.clone(), spread(values)?))).collect();
        let figures: Vec<&Figure> =
            figures.iter().filter(|(key, _, _)| all || spreads.contains_key(*key)).collect();
        for (key, _, _) in &figures {
            spreads.get(*key).with_context(|| format!("no sample of {key}"))?;
        }
        Ok(Self { figures, spreads, place })
    }

    /// Whether every bar holds.
    pub(super) fn holds(&self) -> bool {
        self.figures.iter().all(|(key, bar, _)| bar.holds(self.spreads[*key].median))
    }

    /// The medians under their keys, and all spreads beside them.
    pub(super) fn json(&self) -> Value {
        let round = |value: f64| (value * 1e3).round() / 1e3;
        let mut out = json!({ "clock": self.clock(), "holds": self.holds() });
        for (key, _, _) in &self.figures {
            out[*key] = round(self.spreads[*key].median).into();
        }
        for (key, s) in &self.spreads {
            out["spread"][key] = json!({ "median": round(s.median), "min": round(s.min), "max": round(s.max), "runs": s.count });
        }
        out
    }

    pub(super) fn table(&self) -> String {
        let mut out = format!("\n  clock: {}\n", self.clock());
        for (key, bar, text) in &self.figures {
            let s = self.spreads[*key];
            let verdict = if bar.holds(s.median) { "" } else { "  MISSED" };
            out.push_str(&format!(
                "  {key:28} {:>10.2}  {:10} [{:.2} .. {:.2}] of {:<3} {text}{verdict}\n",
                s.median,
                bar.to_string(),
                s.min,
                s.max,
                s.count
            ));
        }
        out.push('\n');
        for (key, s) in self.spreads.iter().filter(|(key, _)| key.starts_with("phase_")) {
            out.push_str(&format!(
                "  {key:28} {:>10.2}             [{:.2} .. {:.2}]\n",
                s.median, s.min, s.max
            ));
        }
        out
    }

    fn clock(&self) -> &'static str {
        match self.place {
            Place::Direct => "real time",
            Place::Emulated => "1 ms = 1 million instructions (emulated machine)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(run_cold_ms: f64) -> Samples {
        let mut samples: Samples = NACRE.iter().map(|(key, _, _)| ((*key).to_owned(), vec![0.0])).collect();
        samples.insert("stdout_ratio_to_runc".into(), vec![0.7]);
        samples.insert("run_cold_ms".into(), vec![run_cold_ms]);
        samples
    }

    #[test]
    fn median_is_the_middle_of_any_order() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]).unwrap().median, 2.0);
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn missed_bar_is_told() {
        assert!(Report::new(&samples(199.0), NACRE, true, Place::Direct).unwrap().holds());
        let report = Report::new(&samples(201.0), NACRE, true, Place::Direct).unwrap();
        assert!(!report.holds());
        assert_eq!(report.table().matches("MISSED").count(), 1);
        assert_eq!(report.json()["run_cold_ms"], 201.0);
    }

    #[test]
    fn figure_without_a_sample_is_an_error() {
        let mut samples = samples(1.0);
        samples.remove("host_pss_kib");
        assert!(Report::new(&samples, NACRE, true, Place::Direct).is_err());
        let report = Report::new(&samples, NACRE, false, Place::Direct).unwrap();
        assert!(!report.table().contains("host_pss_kib") && report.table().contains("run_cold_ms"));
    }
}
