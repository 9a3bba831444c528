//! A Docker daemon of a test's own, on a containerd of the test's own, with nacre as a runtime.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::containerd::Containerd;
use crate::sandbox::{Outcome, TestSandbox};

/// For a daemon that starts on an emulated machine under load.
const START: Duration = Duration::from_secs(90);

/// Seconds after which a command is ended.
const LIMIT_S: &str = "180";

/// The test image, as Docker knows it.
pub const IMAGE: &str = "e2e:latest";

/// A daemon, until it is dropped.
pub struct Docker {
    daemon: Child,
    containerd: Containerd,
}

impl Docker {
    /// Starts one, with the image loaded.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start() -> Self {
        let containerd = Containerd::without_images();
        let at = |name: &str| containerd.path(name).display().to_string();
        let config = at("daemon.json");
        fs::write(&config, r#"{"runtimes": {"nacre": {"runtimeType": "io.containerd.nacre.v2"}}}"#)
            .expect("a configuration");
        let log = fs::File::create(at("docker.log")).expect("a log");
        let daemon = Command::new("dockerd")
            .args(["--config-file", &config, "--containerd", &at("sock"), "--data-root", &at("docker")])
            .args(["--exec-root", &at("docker-exec"), "--pidfile", &at("docker.pid")])
            .args([
                "-H",
                &format!("unix://{}", at("docker.sock")),
                "--exec-opt",
                "native.cgroupdriver=cgroupfs",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("dockerd is installed where the end-to-end tests run");
        let docker = Self { daemon, containerd };
        let deadline = Instant::now() + START;
        while docker.run(&["version"]).status != 0 {
            assert!(Instant::now() < deadline, "dockerd does not answer:\n{}", docker.log());
            std::thread::sleep(Duration::from_millis(200));
        }
        docker.load();
        docker
    }

    fn load(&self) {
        let archive = self.containerd.path("docker.tar").display().to_string();
        let to = format!("docker-archive:{archive}:{IMAGE}");
        Outcome::of(Command::new("skopeo").args(["copy", "-q", &TestSandbox::image(), &to])).ok();
        self.run(&["load", "-q", "-i", &archive]).ok();
    }

    /// `docker ARGUMENTS`.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        let socket = format!("unix://{}", self.containerd.path("docker.sock").display());
        Outcome::of(Command::new("timeout").args([LIMIT_S, "docker", "-H", &socket]).args(arguments))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        let docker = fs::read_to_string(self.containerd.path("docker.log")).unwrap_or_default();
        format!("{docker}\n{}", self.containerd.log())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
            let all = self.run(&["ps", "-aq"]).stdout;
            for id in all.lines() {
                self.run(&["rm", "-f", id]);
            }
        }
        let pid = self.daemon.id().to_string();
        let _ = Command::new("kill").arg(&pid).status();
        let _ = self.daemon.wait();
        // Docker keeps its bridge; nothing of ours.
        if Path::new("/sys/class/net/docker0").exists() {
            let _ = Command::new("ip").args(["link", "delete", "docker0"]).status();
        }
    }
}
