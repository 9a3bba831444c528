//! A containerd of a test's own: its directories, its socket, its network, and the test image.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cri::Cri;
use crate::sandbox::{Outcome, TestSandbox};

/// For a containerd that starts on an emulated machine under load.
const START: Duration = Duration::from_secs(60);

/// Seconds after which a command is ended.
const LIMIT_S: &str = "180";

/// The test image, as containerd knows it.
pub const IMAGE: &str = "localhost/e2e:latest";

/// Room for the test image; each layer's snapshot is a copy of the one below it.
const BLOCK_SNAPSHOT_BYTES: u64 = 80 << 20;

/// The same image with a command that sleeps, for the sandboxes of pods.
const PAUSE: &str = "localhost/pause:latest";

/// containerd's namespace of what the CRI makes.
const CRI_NAMESPACE: &str = "k8s.io";

/// A containerd, until it is dropped.
pub struct Containerd {
    process: Option<Child>,
    dir: tempfile::TempDir,
}

impl Containerd {
    /// Starts one, with the image in the namespace `default`.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start() -> Self {
        let containerd = Self::without_images();
        let archive = containerd.archive(IMAGE, &[]);
        containerd.ctr(&["image", "import", &archive]).ok();
        containerd
    }

    /// Starts one with nothing in it.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn without_images() -> Self {
        let mut containerd = Self { process: None, dir: tempfile::tempdir().expect("a temporary directory") };
        containerd.write_config();
        containerd.launch();
        containerd
    }

    /// Starts one, with the images in the CRI's namespace.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn with_cri() -> Self {
        let containerd = Self::without_images();
        for (name, options) in
            [(IMAGE, &[][..]), (PAUSE, &["--config.cmd", "sleep", "--config.cmd", "2000000000"])]
        {
            let archive = containerd.archive(name, options);
            containerd.ctr(&["-n", CRI_NAMESPACE, "image", "import", &archive]).ok();
        }
        containerd
    }

    /// The same, with the images in a block snapshotter too: each snapshot is an ext4 file system in a file.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn with_block_snapshots() -> Self {
        let mut containerd = Self::with_cri();
        containerd.kill();
        containerd.add_block_snapshotter();
        containerd.launch();
        let archive = containerd.path("image.tar").display().to_string();
        let import = ["-n", CRI_NAMESPACE, "image", "import", "--local", "--snapshotter", "blockfile"];
        containerd.ctr(&[&import[..], &[&archive]].concat()).ok();
        containerd
    }

    fn add_block_snapshotter(&self) {
        let scratch = self.path("scratch");
        let file = fs::File::create(&scratch).expect("a file");
        file.set_len(BLOCK_SNAPSHOT_BYTES).expect("a length");
        Outcome::of(Command::new("mkfs.ext4").arg("-q").arg(&scratch)).ok();
        let snapshots = self.path("blockfile");
        let config = format!(
            r#"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nacre-block]
runtime_type = "io.containerd.nacre.v2"
snapshotter = "blockfile"
[plugins.'io.containerd.snapshotter.v1.blockfile']
root_path = {snapshots:?}
scratch_file = {scratch:?}
fs_type = "ext4"
mount_options = []
recreate_scratch = true
"#
        );
        let file = fs::File::options().append(true).open(self.path("config.toml"));
        file.and_then(|mut file| file.write_all(config.as_bytes())).expect("a configuration");
    }

    /// An archive of the test image, with these options of `umoci config`.
    fn archive(&self, name: &str, options: &[&str]) -> String {
        let layout = self.path("layout").display().to_string();
        let to = format!("oci:{layout}:image");
        Outcome::of(Command::new("skopeo").args(["copy", "-q", &TestSandbox::image(), &to])).ok();
        if !options.is_empty() {
            let image = format!("{layout}:image");
            Outcome::of(Command::new("umoci").args(["config", "--image", &image]).args(options)).ok();
        }
        let archive = self.path("image.tar").display().to_string();
        let _ = fs::remove_file(&archive);
        let to = format!("oci-archive:{archive}:{name}");
        Outcome::of(Command::new("skopeo").args(["copy", "-q", &format!("oci:{layout}:image"), &to])).ok();
        fs::remove_dir_all(layout).expect("a layout to remove");
        archive
    }

    fn write_config(&self) {
        let at = |name: &str| self.path(name).display().to_string();
        let config = format!(
            r#"version = 3
root = {:?}
state = {:?}
[grpc]
address = {:?}
[ttrpc]
address = {:?}
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = {PAUSE:?}
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = {:?}
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nacre]
runtime_type = "io.containerd.nacre.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nacre-sandbox]
runtime_type = "io.containerd.nacre.v2"
sandboxer = "shim"
"#,
            at("root"),
            at("state"),
            at("sock"),
            at("sock.ttrpc"),
            at("cni"),
        );
        fs::write(at("config.toml"), config).expect("a configuration");
        let network = format!(
            r#"{{"cniVersion": "1.0.0", "name": "e2e", "plugins": [{{"type": "bridge", "bridge": "e2e0",
"isGateway": true, "ipMasq": false, "ipam": {{"type": "host-local", "dataDir": {:?},
"ranges": [[{{"subnet": "10.77.0.0/24"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}"#,
            at("cni-state"),
        );
        fs::create_dir(at("cni")).expect("a directory");
        fs::write(self.path("cni/10-e2e.conflist"), network).expect("a network");
    }

    /// Starts the process, again where it was killed.
    ///
    /// # Panics
    /// Where it does not answer.
    pub fn launch(&mut self) {
        let log = fs::File::options().append(true).create(true).open(self.path("log")).expect("a log");
        let process = Command::new("containerd")
            .arg("-c")
            .arg(self.path("config.toml"))
            // Its shims inherit it: a first start on an emulated machine under load is slow.
            .env("NACRE_TIMEOUT_MS", "150000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd is installed where the end-to-end tests run");
        self.process = Some(process);
        let deadline = Instant::now() + START;
        while self.ctr(&["version"]).status != 0 {
            assert!(Instant::now() < deadline, "containerd does not answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Ends the process as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// A connection to its CRI, once its network is ready.
    ///
    /// # Panics
    /// Where it is not.
    pub fn cri(&self) -> Cri {
        let deadline = Instant::now() + START;
        loop {
            let cri = Cri::connect(&self.path("sock")).expect("containerd's socket");
            if cri.is_ready() {
                return cri;
            }
            assert!(Instant::now() < deadline, "the CRI does not get ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// `ctr ARGUMENTS`.
    pub fn ctr(&self, arguments: &[&str]) -> Outcome {
        let socket = self.path("sock").display().to_string();
        Outcome::of(Command::new("timeout").args([LIMIT_S, "ctr", "-a", &socket]).args(arguments))
    }

    /// `ctr run --rm` with the runtime of this project.
    pub fn run(&self, options: &[&str], id: &str, command: &[&str]) -> Outcome {
        let runtime = ["run", "--rm", "--runtime", "io.containerd.nacre.v2"];
        self.ctr(&[&runtime, options, &[IMAGE, id], command].concat())
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.kill();
        // What the bridge plugin makes stays; nothing of ours.
        if Path::new("/sys/class/net/e2e0").exists() {
            let _ = Command::new("ip").args(["link", "delete", "e2e0"]).status();
        }
    }
}
