//! `package`: what a host installs, as a Debian package and as an archive.
//!
//! ```text
//! target/package/nacre_VERSION_amd64.deb       below /usr and /etc, for a host with dpkg        (deb.rs)
//! target/package/nacre-VERSION-x86_64.tar.gz   one directory that works wherever it is put, with all of
//!                                              deploy/: for other hosts, and for nodes' image   (archive.rs)
//! ```
//!
//! [`layout`] says which file goes where in either. The same files give the same bytes: entries are sorted, owned by
//! root, and as old as the commit (or `SOURCE_DATE_EPOCH`).

mod archive;
mod deb;
mod layout;
#[cfg(test)]
mod node_tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::install;
use crate::process::{command, output, run as run_command, step};
use crate::project::Project;

/// Of every crate, and so of the packages.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the programs run on, and Debian's word for it.
const ARCH: &str = "x86_64";
const DEBIAN_ARCH: &str = "amd64";

/// `package [OPTIONS]`
#[derive(Args)]
pub(crate) struct Options {
    /// Where to put the packages (default: target/package)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Take the programs that target/nacre has, instead of building them
    #[arg(long)]
    no_build: bool,
    /// Instead of packaging: check deploy/ with helm and the schemas of Kubernetes, which are fetched where missing
    #[arg(long, conflicts_with_all = ["out", "no_build"])]
    check: bool,
}

/// Makes both packages, or checks `deploy/`.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    if options.check {
        let script = project.root.join("tools/package/check-deploy.sh");
        return run_command(
            command(script, [project.target.join("deploy-check")]).current_dir(&project.root),
        );
    }
    if std::env::consts::ARCH != ARCH {
        bail!("packages are made for {ARCH} only");
    }
    if !options.no_build {
        install::build(project)?;
    }
    let out = options.out.clone().unwrap_or_else(|| project.target.join("package"));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let time = time(project)?;
    let deb = step("Debian package", || deb::build(project, &out, time))?;
    let archive = step("archive", || archive::build(project, &out, time))?;
    for path in [deb, archive] {
        println!("{}", path.display());
    }
    Ok(())
}

/// How old every file of a package is.
#[derive(Clone, Copy)]
struct Time {
    /// Since 1970.
    seconds: u64,
}

impl Time {
    fn system(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.seconds)
    }
}

fn time(project: &Project) -> Result<Time> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => output(command("git", ["log", "-1", "--format=%ct"]).current_dir(&project.root))
            .context("no commit to take the time of; set SOURCE_DATE_EPOCH")?,
    };
    let seconds = text.trim().parse().with_context(|| format!("{text:?} is no time in seconds"))?;
    Ok(Time { seconds })
}

/// The text that says under which terms each part may be passed on.
fn copyright(project: &Project, vmlinux: &Path) -> Result<String> {
    let template = project.root.join("tools/package/copyright");
    let text =
        std::fs::read_to_string(&template).with_context(|| format!("cannot read {}", template.display()))?;
    let kernel = std::fs::read(vmlinux).with_context(|| format!("cannot read {}", vmlinux.display()))?;
    let linux = linux_version(&kernel)
        .with_context(|| format!("{} does not say which Linux it is", vmlinux.display()))?;
    Ok(text.replace("@VERSION@", VERSION).replace("@LINUX@", linux))
}

/// The release in a kernel's banner, without the name that a configuration has given it.
fn linux_version(kernel: &[u8]) -> Option<&str> {
    const BANNER: &[u8] = b"Linux version ";
    let starts = kernel.windows(BANNER.len()).enumerate().filter(|(_, window)| *window == BANNER);
    starts.map(|(at, _)| &kernel[at + BANNER.len()..]).find_map(|rest| {
        let end = rest.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'.'))?;
        std::str::from_utf8(&rest[..end]).ok().filter(|version| !version.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_version_is_the_banner_s_number() {
        let kernel = b"\0Linux version %s\0..Linux version 6.12.9-guest (a@b)\0";
        assert_eq!(linux_version(kernel), Some("6.12.9"));
        assert_eq!(linux_version(b"Linux version "), None);
    }

    #[test]
    fn chart_and_manifests_name_this_version() {
        let root = Project::find().unwrap().root;
        let read = |name: &str| std::fs::read_to_string(root.join("deploy").join(name)).unwrap();
        let chart = read("helm/nacre/Chart.yaml");
        assert!(chart.contains(&format!("\nversion: {VERSION}\nappVersion: \"{VERSION}\"\n")), "{chart}");
        for name in ["daemonset.yaml", "helm/nacre/values.yaml", "node/Dockerfile"] {
            assert!(read(name).contains(&format!("nacre-node:{VERSION}")), "{name}");
        }
    }

    /// The parser itself is the shim's: `tools/package/check-deb.sh` starts one with every key set.
    #[test]
    fn shipped_configuration_has_the_keys_and_defaults_of_the_document() {
        let root = Project::find().unwrap().root;
        let shipped = std::fs::read_to_string(root.join("deploy/config.toml")).unwrap();
        let document = std::fs::read_to_string(root.join("docs/configuration.md")).unwrap();
        let mut table = "";
        let mut keys = Vec::new();
        for line in shipped.lines() {
            if let Some(name) = line.strip_prefix('[') {
                table = name.trim_end_matches(']');
            } else if let Some((key, value)) = line.strip_prefix('#').and_then(|line| line.split_once(" = "))
            {
                keys.push((format!("{table}.{key}"), value));
            }
        }
        // Annotations are no keys of the file.
        let of_file = document.split("\n## ").next().unwrap();
        let first_columns = of_file.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next());
        let words = first_columns.flat_map(|cell| cell.split('`').filter(|word| word.contains('.')));
        let documented: Vec<&str> = words.collect();
        let names: Vec<&str> = keys.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, documented);
        for (name, value) in keys.iter().filter(|(name, _)| !name.starts_with("assets.")) {
            assert!(document.contains(&format!("| `{name}` | {value} |")), "{name} = {value}");
        }
    }
}
