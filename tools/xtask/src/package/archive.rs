//! The archive: one directory `nacre-VERSION`. gzip, since every build of images unpacks it and every host has it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{ARCH, Time, VERSION, layout};
use crate::process::{command, run};
use crate::project::Project;

/// Builds it in `out` and gives its path.
pub(super) fn build(project: &Project, out: &Path, time: Time) -> Result<PathBuf> {
    let name = format!("nacre-{VERSION}");
    let root = out.join(&name);
    layout::stage(&layout::archive(project)?, &root, time)?;
    let tar = out.join(format!("{name}-{ARCH}.tar"));
    pack(out, &name, &tar)?;
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    // Neither the file's name nor its time goes into the result.
    run(command("gzip", ["--no-name", "--best", "--force"]).arg(&tar))?;
    Ok(tar.with_extension("tar.gz"))
}

fn pack(directory: &Path, name: &str, to: &Path) -> Result<()> {
    let mut tar = command("tar", ["--create", "--format=ustar", "--sort=name", "--numeric-owner"]);
    tar.args(["--owner=0", "--group=0"]).arg("--directory").arg(directory).arg("--file").arg(to);
    run(tar.arg(name))
}

#[cfg(test)]
mod tests {
    use super::layout::{Entry, stage};
    use super::*;

    #[test]
    fn same_files_give_the_same_bytes() {
        let packed = || {
            let dir = tempfile::tempdir().unwrap();
            let entries = ["b/c", "a"].map(|name| Entry::text(name.into(), name));
            stage(&entries, &dir.path().join("x"), Time { seconds: 1 }).unwrap();
            pack(dir.path(), "x", &dir.path().join("x.tar")).unwrap();
            fs::read(dir.path().join("x.tar")).unwrap()
        };
        assert_eq!(packed(), packed());
    }
}
