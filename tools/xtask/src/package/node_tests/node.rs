//! A made-up node in a temporary directory, with the archive beside it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::CONFIG;
use crate::project::Project;

/// Every file, link and directory below a root: mode and bytes by path.
pub(super) type Tree = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// Its root directory is `host`, the archive is `archive`, programs that stand in for others are in `bin`.
pub(super) struct Node {
    pub(super) dir: tempfile::TempDir,
}

impl Node {
    /// A node with this configuration of containerd.
    pub(super) fn new(config: Option<&str>) -> Self {
        let node = Self { dir: tempfile::tempdir().unwrap() };
        node.unpack();
        fs::create_dir_all(node.host("usr/bin")).unwrap();
        if let Some(text) = config {
            node.write(CONFIG, text);
            fs::set_permissions(node.host(CONFIG), fs::Permissions::from_mode(0o640)).unwrap();
        }
        node.stand_in("curl", "cat > \"$CALLS.stdin\"; printf '%s\\n' \"$@\" >> \"$CALLS.curl\"");
        node
    }

    /// A script that the installer finds on its PATH before the program of that name.
    pub(super) fn stand_in(&self, program: &str, script: &str) {
        let path = self.dir.path().join("bin").join(program);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The archive, as far as the script is concerned.
    fn unpack(&self) {
        let deploy = Project::find().unwrap().root.join("deploy");
        for name in
            ["node/install.sh", "node/containerd.sh", "containerd/nacre.toml", "containerd/nacre-v2.toml"]
        {
            let to = self.dir.path().join("archive").join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(deploy.join(name), to).unwrap();
        }
        for name in ["nacre", "containerd-shim-nacre-v2", "nacre-vmm", "nacre-fs"] {
            self.release(&format!("bin/{name}"), "1");
        }
        for name in ["vmlinux", "initramfs.cpio"] {
            self.release(&format!("guest/{name}"), "1");
        }
    }

    /// Puts a file of another version into the archive.
    pub(super) fn release(&self, name: &str, text: &str) {
        let to = self.dir.path().join("archive").join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, text).unwrap();
    }

    pub(super) fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join("host").join(path)
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.host(path).parent().unwrap()).unwrap();
        fs::write(self.host(path), text).unwrap();
    }

    pub(super) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.host(path)).unwrap_or_default()
    }

    pub(super) fn start_sandbox(&self) {
        self.write("run/nacre/k8s.io/abc/state.json", "{}");
    }

    pub(super) fn run_with(&self, verb: &str, variables: &[(&str, &str)]) -> Output {
        let path = format!("{}:/usr/bin:/bin", self.dir.path().join("bin").display());
        let calls = self.dir.path().join("calls").display().to_string();
        let mut command = Command::new("sh");
        command.arg(self.dir.path().join("archive/node/install.sh")).arg(verb);
        command.env_clear().env("PATH", path).env("HOST_ROOT", self.host("")).env("CALLS", calls);
        command.env("CHECK", "true").env("RESTART", "echo restart >> \"$CALLS.restart\"");
        command.envs(variables.iter().copied()).output().unwrap()
    }

    pub(super) fn run(&self, verb: &str) -> Output {
        self.run_with(verb, &[])
    }

    pub(super) fn ok(&self, verb: &str) {
        let output = self.run(verb);
        assert!(output.status.success(), "{}", told(&output));
    }

    pub(super) fn restarts(&self) -> usize {
        fs::read_to_string(self.dir.path().join("calls.restart")).unwrap_or_default().lines().count()
    }

    pub(super) fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        walk(&self.host(""), &mut tree);
        tree
    }
}

fn walk(path: &Path, tree: &mut Tree) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let bytes = if metadata.is_file() { fs::read(path).unwrap() } else { Vec::new() };
    tree.insert(path.to_owned(), (metadata.permissions().mode(), bytes));
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            walk(&entry.unwrap().path(), tree);
        }
    }
}

/// What a script has said.
pub(super) fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
