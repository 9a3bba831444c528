//! The crate table of `docs/architecture.md` against what cargo knows: each crate of the workspace stands in it,
//! and uses no other crate of the workspace than the table allows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::install::cargo;
use crate::process::output;
use crate::project::Project;

/// The document with the table.
const DOCUMENT: &str = "docs/architecture.md";

/// Word of the third column that allows every crate.
const ALL: &str = "all";

/// What each path uses, or may use: paths relative to the root.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// Compares the table with cargo's metadata.
pub(super) fn check(project: &Project) -> Result<()> {
    let text = fs::read_to_string(project.root.join(DOCUMENT)).with_context(|| format!("no {DOCUMENT}"))?;
    let allowed = table(&text)?;
    let used = metadata(project)?;
    let problems = compare(&allowed, &used);
    if problems.is_empty() { Ok(()) } else { bail!("{DOCUMENT}: {}", problems.join("; ")) }
}

/// Rows `| [crates/x](..) | owns | may use |`, where the last column lists crates by their last component.
fn table(text: &str) -> Result<Uses> {
    let rows: Vec<(String, Vec<String>)> = text.lines().filter_map(row).collect();
    if rows.is_empty() {
        bail!("no crate table");
    }
    let paths: Vec<String> = rows.iter().map(|(path, _)| path.clone()).collect();
    let path_of = |name: &str| paths.iter().find(|path| path.rsplit('/').next() == Some(name)).cloned();
    let mut uses = Uses::new();
    for (path, names) in rows {
        let mut allowed = BTreeSet::new();
        for name in names {
            if name == ALL {
                allowed.extend(paths.iter().cloned());
            } else {
                allowed.insert(
                    path_of(&name).with_context(|| format!("{path} may use {name}, which is no row"))?,
                );
            }
        }
        uses.insert(path, allowed);
    }
    Ok(uses)
}

fn row(line: &str) -> Option<(String, Vec<String>)> {
    let cells: Vec<&str> =
        line.trim().strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let [path, _, uses] = cells[..] else { return None };
    let path = path.trim_start_matches(['[', '`']).split(['`', ']']).next()?;
    if !(path.starts_with("crates/") || path.starts_with("tests") || path.starts_with("tools/")) {
        return None;
    }
    let words = uses.split(',').map(|word| word.trim().trim_matches('`').to_owned());
    Some((path.to_owned(), words.filter(|word| !word.is_empty() && word != "-").collect()))
}

/// The packages of the workspace and what they depend on among each other, tests included.
fn metadata(project: &Project) -> Result<Uses> {
    let json = output(cargo(project).args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
    let json: Value = serde_json::from_str(&json).context("cargo metadata is no JSON")?;
    let relative = |manifest: &str| -> Option<String> {
        let dir = std::path::Path::new(manifest).parent()?.strip_prefix(&project.root).ok()?;
        Some(dir.to_str()?.to_owned())
    };
    let packages = json["packages"].as_array().context("cargo metadata has no packages")?;
    let mut paths = BTreeMap::new();
    for package in packages {
        let (name, manifest) = (package["name"].as_str(), package["manifest_path"].as_str());
        let path = manifest.and_then(relative).context("a package outside of the tree")?;
        paths.insert(name.context("a package without a name")?, path);
    }
    let mut uses = Uses::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let used = dependencies.filter_map(|d| paths.get(d["name"].as_str()?).cloned());
        uses.insert(paths[name].clone(), used.collect());
    }
    Ok(uses)
}

fn compare(allowed: &Uses, used: &Uses) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, uses) in used {
        let Some(allowed) = allowed.get(path) else {
            problems.push(format!("{path} does not stand in the crate table"));
            continue;
        };
        for other in uses.difference(allowed) {
            problems.push(format!("{path} uses {other}, which the crate table does not allow"));
        }
    }
    for path in allowed.keys().filter(|path| !used.contains_key(*path)) {
        problems.push(format!("{path} stands in the crate table and is no crate"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
| path | owns | may use |
|---|---|---|
| [`crates/protocol`](../crates/protocol) | words | - |
| `crates/vmm` | machines | protocol |
| `tests` | the end | all |
";

    fn uses(pairs: &[(&str, &[&str])]) -> Uses {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), v.iter().map(|s| (*s).to_owned()).collect())).collect()
    }

    #[test]
    fn table_reads_paths_and_names() {
        let table = table(TABLE).unwrap();
        assert_eq!(table["crates/vmm"], BTreeSet::from(["crates/protocol".to_owned()]));
        assert_eq!(table["tests"].len(), 3);
    }

    #[test]
    fn use_that_the_table_does_not_allow_is_named() {
        let used = uses(&[
            ("crates/protocol", &["crates/vmm"]),
            ("crates/vmm", &["crates/protocol"]),
            ("tests", &[]),
        ]);
        let problems = compare(&table(TABLE).unwrap(), &used);
        assert_eq!(problems, ["crates/protocol uses crates/vmm, which the crate table does not allow"]);
    }

    #[test]
    fn missing_and_stale_rows_are_named() {
        let used = uses(&[("crates/protocol", &[]), ("crates/fs", &[]), ("tests", &[])]);
        let problems = compare(&table(TABLE).unwrap(), &used);
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
