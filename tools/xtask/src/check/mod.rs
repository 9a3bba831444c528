//! `check`: what must hold before a commit. CI runs the same.
//!
//! | step | module |
//! |---|---|
//! | rustfmt, clippy and rustdoc with warnings denied, unit and property tests | here |
//! | crate table of `docs/architecture.md` against cargo's own | [`dependencies`] |
//! | links in the documents lead somewhere | [`links`] |
//! | words that are misspelt often | [`spelling`] |
//! | cargo-deny (`--deny`): advisories, licences, sources, bans | here |

mod dependencies;
mod links;
mod spelling;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::install::cargo;
use crate::packages::{self, Need};
use crate::process::{command, output, run, step};
use crate::project::Project;

/// `check [OPTIONS]`
#[derive(Args)]
pub(crate) struct Options {
    /// Also run cargo-deny, which must be installed (cargo install cargo-deny)
    #[arg(long)]
    deny: bool,
    /// Leave out the unit and property tests
    #[arg(long)]
    no_tests: bool,
    /// Only what needs no compiler
    #[arg(long)]
    quick: bool,
}

/// A step's name and work.
type Step<'a> = (&'a str, Box<dyn Fn() -> Result<()> + 'a>);

/// Runs every step, and tells all that failed at the end.
pub(crate) fn run_all(project: &Project, options: &Options) -> Result<ExitCode> {
    packages::ensure(&[Need::Compile])?;
    if !options.quick && !options.no_tests {
        packages::ensure(&[Need::Test])?;
    }
    let mut steps: Vec<Step<'_>> = vec![
        ("format", Box::new(|| run(cargo(project).args(["fmt", "--all", "--", "--check", "-l"])))),
        ("spelling", Box::new(|| spelling::check(project))),
        ("links", Box::new(|| links::check(project))),
        ("dependency table", Box::new(|| dependencies::check(project))),
    ];
    if !options.quick {
        steps.push(("clippy", Box::new(|| clippy(project))));
        steps.push(("rustdoc", Box::new(|| rustdoc(project))));
    }
    if !options.quick && !options.no_tests {
        let test = || run(cargo(project).args(["test", "--workspace", "--quiet", "--locked"]));
        steps.push(("unit and property tests", Box::new(test)));
    }
    if options.deny {
        steps
            .push(("cargo-deny", Box::new(|| run(cargo(project).args(["deny", "--all-features", "check"])))));
    }
    let mut failed = Vec::new();
    for (name, work) in steps {
        if let Err(error) = step(name, work) {
            eprintln!("    FAILED: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("check failed: {}", failed.join(", "));
    }
    eprintln!("==> everything holds");
    Ok(ExitCode::SUCCESS)
}

fn clippy(project: &Project) -> Result<()> {
    let mut clippy = cargo(project);
    clippy.args(["clippy", "--workspace", "--all-targets", "--quiet", "--locked", "--", "-D", "warnings"]);
    run(&mut clippy)
}

fn rustdoc(project: &Project) -> Result<()> {
    let mut doc = cargo(project);
    doc.args(["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet", "--locked"]);
    // Private items are documented too, so a link to one is what it should be.
    run(doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"))
}

/// The files that git knows with one of these extensions, relative to the root.
fn tracked(project: &Project, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let list = output(command("git", ["ls-files", "-z"]).current_dir(&project.root))
        .context("the tree is not a git repository")?;
    let wanted = |path: &PathBuf| {
        path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e))
            && project.root.join(path).is_file()
    };
    Ok(list.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).filter(wanted).collect())
}
