//! Every case of the suite, with both results, and the cause where they differ.
//!
//! Results are Ginkgo's JSON reports, one for each file of the suite. Causes are lines `PART OF THE CASE'S NAME | CAUSE`;
//! a difference without one fails the command, so that a new failure cannot hide among the known.

use std::cell::Cell;
use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// A suite's report, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    leaf_node_location: Location,
    state: String,
    failure: Option<Failure>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Location {
    #[serde(default)]
    file_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// What a case did under one runtime: Ginkgo's word for it, and what it said where it did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    state: String,
    said: String,
}

/// The results of one case: nacre's, then runc's.
type Case = [Option<Outcome>; 2];

struct Cause {
    part: String,
    text: String,
    is_used: Cell<bool>,
}

/// All results.
pub(super) struct Report {
    /// By file of the suite, and by name.
    files: BTreeMap<String, BTreeMap<String, Case>>,
    causes: Vec<Cause>,
}

impl Report {
    /// Without results yet.
    ///
    /// # Errors
    /// Where a line of the causes is none.
    pub(super) fn new(causes: &str) -> Result<Self> {
        let lines = causes.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let cause = |line: &str| {
            let (part, text) = line.split_once(" | ").with_context(|| format!("no cause in {line:?}"))?;
            Ok(Cause { part: part.to_owned(), text: text.to_owned(), is_used: Cell::new(false) })
        };
        Ok(Self { files: BTreeMap::new(), causes: lines.map(cause).collect::<Result<_>>()? })
    }

    /// Adds a report of Ginkgo's, of nacre (side 0) or runc (side 1). Of a case that is there already, the new result
    /// holds.
    pub(super) fn add(&mut self, side: usize, json: &[u8]) -> Result<()> {
        for spec in cases(json)? {
            let case = self.case(&spec);
            let said = spec.failure.unwrap_or_default().message;
            case[side] = Some(Outcome { state: spec.state, said });
        }
        Ok(())
    }

    /// Adds the cases of a dry run, as not run yet: one that no run chooses is missed that way.
    pub(super) fn expect(&mut self, json: &[u8]) -> Result<()> {
        for spec in cases(json)? {
            self.case(&spec);
        }
        Ok(())
    }

    fn case(&mut self, spec: &Spec) -> &mut Case {
        let name = name(spec.container_hierarchy_texts.as_deref(), &spec.leaf_node_text);
        let file = spec.leaf_node_location.file_name.rsplit('/').next().unwrap_or_default().to_owned();
        self.files.entry(file).or_default().entry(name).or_default()
    }

    /// One table for each file of the suite.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!("{}\n", self.summary());
        for (file, cases) in self.files.iter().filter(|(_, cases)| !cases.is_empty()) {
            text.push_str(&format!("\n### {file}\n\n| case | nacre | runc | cause |\n|---|---|---|---|\n"));
            for (name, case) in cases {
                let [ours, theirs] = case.each_ref().map(word);
                text.push_str(&format!(
                    "| {} | {ours} | {theirs} | {} |\n",
                    cell(name),
                    self.note(name, case)
                ));
            }
        }
        text
    }

    /// How many cases did what.
    pub(super) fn summary(&self) -> String {
        let count = |side: usize, state: &str| self.cases().filter(|(_, c)| word(&c[side]) == state).count();
        let line = |side: usize, name: &str| {
            let known = ["passed", "failed", "skipped"].map(|state| count(side, state));
            let [passed, failed, skipped] = known;
            let rest = self.cases().count() - known.iter().sum::<usize>();
            format!("{name}: {passed} passed, {failed} failed, {skipped} skipped, {rest} not run or cut off")
        };
        format!("{}; {}.", line(0, "nacre"), line(1, "runc"))
    }

    /// Cases that runc passes, and nacre does not, for which no cause is known; and those that did not run.
    pub(super) fn unexplained(&self) -> Vec<String> {
        let differs = |(name, case): &(&String, &Case)| {
            let [ours, theirs] = case.each_ref().map(word);
            (theirs == "passed" && ours != "passed" && self.cause(name).is_none())
                || ours == NOT_RUN
                || theirs == NOT_RUN
        };
        self.cases()
            .filter(differs)
            .map(|(name, case)| format!("{name}: nacre {}, runc {}", word(&case[0]), word(&case[1])))
            .collect()
    }

    /// Causes whose cases pass.
    pub(super) fn stale(&self) -> Vec<&str> {
        for (name, case) in self.cases() {
            if word(&case[0]) != "passed" {
                self.cause(name);
            }
        }
        self.causes.iter().filter(|cause| !cause.is_used.get()).map(|cause| cause.part.as_str()).collect()
    }

    fn cases(&self) -> impl Iterator<Item = (&String, &Case)> {
        self.files.values().flatten()
    }

    fn cause(&self, name: &str) -> Option<&str> {
        let cause = self.causes.iter().find(|cause| name.contains(&cause.part))?;
        cause.is_used.set(true);
        Some(&cause.text)
    }

    /// The cause, or the first line of what nacre's case said, or runc's.
    fn note(&self, name: &str, case: &Case) -> String {
        let bad = case.iter().flatten().find(|outcome| outcome.state != "passed");
        let Some(bad) = bad else { return String::new() };
        if let Some(cause) = self.cause(name) {
            return cause.to_owned();
        }
        let first = bad.said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        cell(&first.trim().chars().take(MAX_NOTE).collect::<String>())
    }
}

/// The cases that were chosen: others are told as skipped, without a word.
fn cases(json: &[u8]) -> Result<impl Iterator<Item = Spec>> {
    let suites: Vec<Suite> = serde_json::from_slice(json).context("no report of Ginkgo's")?;
    let specs = suites.into_iter().flat_map(|suite| suite.spec_reports.unwrap_or_default());
    Ok(specs.filter(|spec| {
        let has_word = spec.failure.as_ref().is_some_and(|failure| !failure.message.is_empty());
        spec.leaf_node_type == "It" && (spec.state != "skipped" || has_word)
    }))
}

/// A case that a machine had no time for.
const NOT_RUN: &str = "not run";

/// Longest note that is taken from the suite's own words, in characters.
const MAX_NOTE: usize = 160;

fn word(outcome: &Option<Outcome>) -> &str {
    outcome.as_ref().map_or(NOT_RUN, |outcome| outcome.state.as_str())
}

/// What the suite prints, without what all cases have.
fn name(hierarchy: Option<&[String]>, leaf: &str) -> String {
    let words: Vec<&str> =
        hierarchy.unwrap_or_default().iter().map(String::as_str).chain(std::iter::once(leaf)).collect();
    let text = words.join(" ");
    text.strip_prefix("[k8s.io] ").unwrap_or(&text).replace(" [Conformance]", "")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(cases: &[(&str, &str, &str)]) -> Vec<u8> {
        let specs: Vec<_> = cases
            .iter()
            .map(|(name, state, said)| {
                serde_json::json!({
                    "ContainerHierarchyTexts": ["[k8s.io] Pod", "runtime"], "LeafNodeText": name,
                    "LeafNodeType": "It", "LeafNodeLocation": {"FileName": "/x/pod.go"}, "State": state, "Failure": {"Message": said},
                })
            })
            .collect();
        let setup = serde_json::json!({
            "ContainerHierarchyTexts": null, "LeafNodeText": "", "LeafNodeType": "BeforeSuite", "State": "passed",
            "LeafNodeLocation": {},
        });
        let all: Vec<_> = specs.into_iter().chain(std::iter::once(setup)).collect();
        serde_json::to_vec(&serde_json::json!([{ "SpecReports": all }])).unwrap()
    }

    fn report(causes: &str) -> Report {
        let mut report = Report::new(causes).unwrap();
        let ours = [
            ("runs [Conformance]", "passed", ""),
            ("forwards", "failed", "\n  it | broke"),
            ("labels", "skipped", "no SELinux"),
            ("of others", "skipped", ""),
        ];
        let theirs =
            [("runs [Conformance]", "passed", ""), ("forwards", "passed", ""), ("late", "passed", "")];
        report.add(0, &suite(&ours)).unwrap();
        report.add(1, &suite(&theirs)).unwrap();
        report
    }

    #[test]
    fn every_case_has_a_row_with_both_results() {
        let text = report("").markdown();
        for row in [
            "| Pod runtime runs | passed | passed |  |",
            "| Pod runtime forwards | failed | passed | it \\| broke |",
            "| Pod runtime labels | skipped | not run | no SELinux |",
            "| Pod runtime late | not run | passed |  |",
        ] {
            assert!(text.contains(row), "{row} in {text}");
        }
        assert!(!text.contains("of others"), "{text}");
        assert!(text.contains("nacre: 1 passed, 1 failed, 1 skipped, 1 not run"), "{text}");
    }

    #[test]
    fn difference_needs_a_cause_and_a_case_that_did_not_run_has_none() {
        let without = report("").unexplained();
        assert!(
            without.iter().any(|line| line.contains("forwards: nacre failed, runc passed")),
            "{without:?}"
        );
        let with = report("# why\nruntime forwards | it cannot\n");
        assert!(!with.unexplained().iter().any(|line| line.contains("forwards")));
        assert!(with.unexplained().iter().any(|line| line.contains("late: nacre not run")));
        assert!(with.markdown().contains("| failed | passed | it cannot |"));
    }

    #[test]
    fn case_that_no_run_chose_is_told() {
        let mut report = report("");
        report
            .expect(&suite(&[("runs", "passed", ""), ("benchmark", "skipped", ""), ("lost", "passed", "")]))
            .unwrap();
        assert!(report.markdown().contains("| Pod runtime lost | not run | not run |  |"));
        assert!(report.unexplained().iter().any(|line| line.contains("lost: nacre not run, runc not run")));
        assert!(!report.markdown().contains("benchmark"));
    }

    #[test]
    fn later_result_of_a_case_holds() {
        let mut report = report("");
        report.add(0, &suite(&[("forwards", "passed", ""), ("late", "passed", "")])).unwrap();
        assert!(
            report.summary().contains("nacre: 3 passed, 0 failed, 1 skipped, 0 not run"),
            "{}",
            report.summary()
        );
    }

    #[test]
    fn cause_of_nothing_is_told() {
        assert_eq!(report("runtime runs | was so\nforwards | is so\n").stale(), ["runtime runs"]);
        assert!(Report::new("no cause").is_err());
    }
}
