//! Which file goes where in the packages, and laying them out in a directory.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{Time, copyright};
use crate::project::Project;

/// The four programs of an installation; they find each other in their own directory.
pub(super) const PROGRAMS: &[&str] = &["nacre", "containerd-shim-nacre-v2", "nacre-vmm", "nacre-fs"];

/// What the guest boots from.
const GUEST: &[&str] = &["vmlinux", "initramfs.cpio"];

/// Where a file's bytes come from.
enum Content {
    Copy(PathBuf),
    Text(String),
}

/// A file of a package.
pub(super) struct Entry {
    content: Content,
    /// Relative to the package's root.
    to: PathBuf,
    executable: bool,
}

impl Entry {
    fn copy(from: PathBuf, to: impl Into<PathBuf>) -> Result<Self> {
        let metadata = fs::metadata(&from).with_context(|| format!("{} is missing", from.display()))?;
        let executable = metadata.permissions().mode() & 0o111 != 0;
        Ok(Self { content: Content::Copy(from), to: to.into(), executable })
    }

    pub(super) fn text(text: String, to: &str) -> Self {
        Self { content: Content::Text(text), to: to.into(), executable: false }
    }

    pub(super) fn script(from: PathBuf, to: &str) -> Result<Self> {
        Ok(Self { executable: true, ..Self::copy(from, to)? })
    }
}

/// Programs, guest and their terms, each in the directory that the package has for it.
fn installed(project: &Project, bin: &str, guest: &str, terms: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for name in PROGRAMS {
        entries.push(Entry::copy(project.bin_dir().join(name), Path::new(bin).join(name))?);
    }
    let from = project.install_dir().join("guest");
    for name in GUEST {
        let entry = Entry::copy(from.join(name), Path::new(guest).join(name))?;
        entries.push(Entry { executable: false, ..entry });
    }
    entries.push(Entry::text(copyright(project, &from.join("vmlinux"))?, terms));
    Ok(entries)
}

/// Files of the Debian package.
///
/// `/usr/lib/nacre/guest`, since both the shim and `nacre check` look there.
pub(super) fn debian(project: &Project) -> Result<Vec<Entry>> {
    let deploy = project.root.join("deploy");
    let examples = Path::new("usr/share/doc/nacre/examples");
    let mut entries = installed(project, "usr/bin", "usr/lib/nacre/guest", "usr/share/doc/nacre/copyright")?;
    entries.push(Entry::copy(deploy.join("config.toml"), "etc/nacre/config.toml")?);
    entries.push(Entry::copy(deploy.join("runtimeclass.yaml"), examples.join("runtimeclass.yaml"))?);
    entries.extend(tree(&deploy.join("containerd"), &examples.join("containerd"))?);
    Ok(entries)
}

/// Files of the archive. `bin` and `guest` beside each other work anywhere; the rest is `deploy/`.
pub(super) fn archive(project: &Project) -> Result<Vec<Entry>> {
    let mut entries = installed(project, "bin", "guest", "COPYRIGHT")?;
    entries.push(Entry::copy(project.root.join("LICENSE"), "LICENSE")?);
    entries.extend(tree(&project.root.join("deploy"), Path::new(""))?);
    Ok(entries)
}

/// Every file below a directory.
fn tree(from: &Path, to: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            entries.extend(tree(&entry.path(), &to)?);
        } else {
            entries.push(Entry::copy(entry.path(), to)?);
        }
    }
    Ok(entries)
}

/// Lays the files out in a new directory: whatever umask and clock are, modes and times are the package's.
pub(super) fn stage(entries: &[Entry], root: &Path, time: Time) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))?;
    }
    for entry in entries {
        let to = root.join(&entry.to);
        write(entry, &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    settle(root, time)
}

fn write(entry: &Entry, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file needs a directory")?)?;
    match &entry.content {
        Content::Copy(from) => fs::copy(from, to).map(drop)?,
        Content::Text(text) => fs::write(to, text)?,
    }
    let mode = if entry.executable { 0o755 } else { 0o644 };
    Ok(fs::set_permissions(to, Permissions::from_mode(mode))?)
}

/// Times last, and from the leaves up: each new entry changes its directory's.
fn settle(path: &Path, time: Time) -> Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            settle(&entry?.path(), time)?;
        }
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
    }
    let settled = File::open(path).and_then(|file| file.set_modified(time.system()));
    settled.with_context(|| format!("cannot set the time of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_files_have_the_modes_and_the_time_of_the_package() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        let entries =
            [Entry::text("text".into(), "a/b/text"), Entry::script(script, "DEBIAN/prerm").unwrap()];
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("old"), "").unwrap();
        let time = Time { seconds: 1_000_000_000 };
        stage(&entries, &root, time).unwrap();
        for (path, mode) in [("a", 0o755), ("a/b/text", 0o644), ("DEBIAN/prerm", 0o755)] {
            let metadata = fs::metadata(root.join(path)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{path}");
            assert_eq!(metadata.modified().unwrap(), time.system(), "{path}");
        }
        assert!(!root.join("old").exists());
    }

    #[test]
    fn tree_has_every_file_of_deploy_and_its_modes() {
        let deploy = Project::find().unwrap().root.join("deploy");
        let entries = tree(&deploy, Path::new("x")).unwrap();
        let find = |name: &str| entries.iter().find(|entry| entry.to == Path::new(name)).unwrap();
        assert!(find("x/node/install.sh").executable);
        assert!(!find("x/helm/nacre/Chart.yaml").executable);
    }
}
