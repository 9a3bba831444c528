//! Links in the Markdown documents: a relative one leads to a file of the tree, a fragment to a heading.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail};

use super::tracked;
use crate::project::Project;

/// Checks every document that git knows.
pub(super) fn check(project: &Project) -> Result<()> {
    let mut problems = Vec::new();
    for document in tracked(project, &["md"])? {
        let text = fs::read_to_string(project.root.join(&document))?;
        for target in targets(&text) {
            if let Some(problem) = problem(&project.root, &document, &text, target) {
                problems.push(format!("{}: {problem}", document.display()));
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("\n")) }
}

fn problem(root: &Path, document: &Path, text: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
    if path.is_empty() {
        return (!has_heading(text, fragment)).then(|| format!("no heading #{fragment}"));
    }
    let Some(file) = resolve(document, path) else { return Some(format!("{target} leaves the tree")) };
    let file = root.join(file);
    if !file.exists() {
        return Some(format!("{target} does not exist"));
    }
    let is_document = file.extension().is_some_and(|e| e == "md");
    if fragment.is_empty() || !is_document {
        return None;
    }
    let other = fs::read_to_string(&file).unwrap_or_default();
    (!has_heading(&other, fragment)).then(|| format!("{target}: no such heading"))
}

/// The targets of `[text](target)`, outside of code.
fn targets(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let mut rest = line;
        while let Some(start) = rest.find("](") {
            rest = &rest[start + 2..];
            let Some(end) = rest.find(')') else { break };
            found.push(rest[..end].split_whitespace().next().unwrap_or_default());
            rest = &rest[end..];
        }
    }
    found
}

/// A path relative to the document, as a path relative to the root; `None` where it leaves the root.
fn resolve(document: &Path, target: &str) -> Option<PathBuf> {
    let mut path = document.parent().unwrap_or(Path::new("")).to_owned();
    for component in Path::new(target).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

fn has_heading(text: &str, fragment: &str) -> bool {
    let headings: BTreeSet<String> = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| slug(line.trim_start_matches('#')))
        .collect();
    headings.contains(fragment)
}

/// A heading as its fragment: lower case, spaces as hyphens, punctuation gone.
fn slug(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_outside_of_code() {
        let text = "see [a](x.md) and [b](y.md#z \"title\")\n```\n[c](no.md)\n```\n";
        assert_eq!(targets(text), ["x.md", "y.md#z"]);
    }

    #[test]
    fn targets_resolve_beside_their_document() {
        assert_eq!(resolve(Path::new("docs/a.md"), "../README.md"), Some(PathBuf::from("README.md")));
        assert_eq!(resolve(Path::new("docs/a.md"), "../../x"), None);
    }

    #[test]
    fn broken_links_are_told() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("b.md"), "# Two words!\n").unwrap();
        let look = |target| problem(root.path(), Path::new("a.md"), "# Here\n", target);
        assert_eq!(look("b.md#two-words"), None);
        assert_eq!(look("#here"), None);
        assert_eq!(look("https://example.test/"), None);
        assert!(look("b.md#three").is_some());
        assert!(look("c.md").is_some());
        assert!(look("#there").is_some());
    }
}
