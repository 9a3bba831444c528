//! The shim under a real containerd: an ordinary image, its overlayfs snapshot, and `ctr`.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nacre_tests::{Outcome, TestSandbox};

/// For a containerd that starts on an emulated machine under load.
const START: Duration = Duration::from_secs(60);

/// Seconds after which a command is ended.
const LIMIT_S: &str = "180";

const IMAGE: &str = "localhost/e2e:latest";

/// A containerd of the test's own, with the test image in it.
struct Containerd {
    process: Child,
    dir: tempfile::TempDir,
}

impl Containerd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            at("root"),
            at("state"),
            at("sock"),
            at("sock.ttrpc"),
        );
        fs::write(at("config.toml"), config).unwrap();
        let log = fs::File::create(at("log")).unwrap();
        let process = Command::new("containerd")
            .args(["-c", &at("config.toml")])
            // Its shims inherit it: a first start on an emulated machine under load is slow.
            .env("NACRE_TIMEOUT_MS", "150000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd is installed where the end-to-end tests run");
        let containerd = Self { process, dir };
        let deadline = Instant::now() + START;
        while containerd.ctr(&["version"]).status != 0 {
            assert!(Instant::now() < deadline, "containerd does not answer:\n{}", containerd.log());
            std::thread::sleep(Duration::from_millis(200));
        }
        let archive = containerd.dir.path().join("image.tar");
        let to = format!("oci-archive:{}:{IMAGE}", archive.display());
        Outcome::of(Command::new("skopeo").args(["copy", "-q", &TestSandbox::image(), &to])).ok();
        containerd.ctr(&["image", "import", &archive.display().to_string()]).ok();
        containerd
    }

    fn ctr(&self, arguments: &[&str]) -> Outcome {
        let socket = self.path("sock").display().to_string();
        Outcome::of(Command::new("timeout").args([LIMIT_S, "ctr", "-a", &socket]).args(arguments))
    }

    /// `ctr run --rm` with the runtime of this project.
    fn run(&self, id: &str, command: &[&str]) -> Outcome {
        let words = ["run", "--rm", "--runtime", "io.containerd.nacre.v2", IMAGE, id];
        self.ctr(&[&words, command].concat())
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn containerd_runs_an_overlayfs_snapshot_behind_a_kernel_of_its_own() {
    // Made first, so that it looks last: at what is left when containerd is gone as well.
    let _census = TestSandbox::new();
    let containerd = Containerd::start();
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let out = containerd.run("kernel", &["uname", "-r"]).ok();
    assert!(out.text().ends_with("-guest") && out.text() != host.trim(), "{out:?}");

    let written = containerd.run("written", &["sh", "-c", "echo one > /new && cat /new && exit 7"]);
    assert_eq!((written.status, written.text()), (7, "one"), "{written:?}");

    let tasks = containerd.ctr(&["task", "ls", "-q"]).ok();
    assert_eq!(tasks.text(), "", "no task is left");
    assert!(!Path::new("/run/nacre/default").exists(), "no sandbox is left");
}
