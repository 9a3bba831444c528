//! A containerd of a test's own: its directories, its socket, its network, and the test image.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::cri::Cri;
use crate::images::{IMAGE, PAUSE, archive};
use crate::sandbox::Outcome;

/// For a containerd that starts on an emulated machine under load.
const START: Duration = Duration::from_secs(60);

/// Seconds after which a command is ended.
const LIMIT_S: &str = "180";

/// Room for the test image; each layer's snapshot is a copy of the one below it.
const BLOCK_SNAPSHOT_BYTES: u64 = 80 << 20;

/// Variable that names a directory with another `containerd` and `ctr`, in place of those on PATH.
const OTHER: &str = "NACRE_TEST_CONTAINERD";

/// Where the lab has the containerd that many nodes still run.
const OLDER: &str = "/opt/containerd-1.7/usr/bin";

/// A containerd to test with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    /// 2.x: the one on PATH, or the one that [`OTHER`] names.
    Current,
    /// 1.7.
    Older,
}

/// What CNI gives the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    /// A bridge with IPv4: what the benchmark measures with.
    Plain,
    /// With IPv6 too, and ports of the host for those of a pod.
    Whole,
}

/// Containerds that were started, so that each has a bridge and addresses of its own.
static COUNT: AtomicU8 = AtomicU8::new(0);

/// containerd's namespace of what the CRI makes.
const CRI_NAMESPACE: &str = "k8s.io";

/// A containerd, until it is dropped.
pub struct Containerd {
    process: Option<Child>,
    dir: tempfile::TempDir,
    release: Release,
    network: Network,
    number: u8,
}

impl Containerd {
    /// Starts one, with the image in the namespace `default`.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn start() -> Self {
        let containerd = Self::without_images();
        containerd.import(&[]);
        containerd
    }

    /// Starts one with nothing in it.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn without_images() -> Self {
        Self::of(Release::Current, Network::Plain)
    }

    fn of(release: Release, network: Network) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut containerd = Self { process: None, dir, release, network, number };
        containerd.write_config();
        // The bridge plugin would make it with the first pod, and what a pod makes shall go with it.
        Outcome::of(Command::new("ip").args(["link", "add", &containerd.bridge(), "type", "bridge"])).ok();
        containerd.launch();
        containerd
    }

    /// Starts one, with the images in the CRI's namespace.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn with_cri() -> Self {
        Self::without_images().with_images()
    }

    /// The same, with all that a pod's network can have.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn with_network() -> Self {
        Self::of(Release::Current, Network::Whole).with_images()
    }

    /// The same, of containerd 1.7.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn older() -> Self {
        Self::of(Release::Older, Network::Whole).with_images()
    }

    fn with_images(self) -> Self {
        self.import(&["-n", CRI_NAMESPACE]);
        self
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
        containerd.import(&["-n", CRI_NAMESPACE, "--local", "--snapshotter", "blockfile"]);
        containerd
    }

    /// Imports all images, with options of `ctr` and then of `ctr image import`.
    fn import(&self, options: &[&str]) {
        let archive = archive().display().to_string();
        let (namespace, import) = options.split_at(options.len().min(2));
        self.ctr(&[namespace, &["image", "import"], import, &[&archive]].concat()).ok();
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

    fn write_config(&self) {
        fs::write(self.path("config.toml"), self.config()).expect("a configuration");
        fs::create_dir(self.path("cni")).expect("a directory");
        fs::write(self.path("cni/10-e2e.conflist"), self.network()).expect("a network");
    }

    fn config(&self) -> String {
        let at = |name: &str| self.path(name).display().to_string();
        let (root, state, socket, ttrpc, cni) =
            (at("root"), at("state"), at("sock"), at("sock.ttrpc"), at("cni"));
        let begin = format!(
            "root = {root:?}\nstate = {state:?}\n[grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {ttrpc:?}\n"
        );
        match self.release {
            Release::Current => format!(
                r#"version = 3
{begin}[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = {PAUSE:?}
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = {cni:?}
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nacre]
runtime_type = "io.containerd.nacre.v2"
pod_annotations = ["dev.nacre.*"]
container_annotations = ["dev.nacre.*"]
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nacre-sandbox]
runtime_type = "io.containerd.nacre.v2"
sandboxer = "shim"
"#
            ),
            Release::Older => format!(
                r#"version = 2
{begin}[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {PAUSE:?}
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = {cni:?}
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "nacre"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nacre]
runtime_type = "io.containerd.nacre.v2"
"#
            ),
        }
    }

    fn network(&self) -> String {
        let (bridge, number, state) = (self.bridge(), self.number, self.path("cni-state"));
        let (ranges, routes, ports) = match self.network {
            Network::Plain => (String::new(), "", ""),
            Network::Whole => (
                format!(r#", [{{"subnet": "fd77:{number}::/64"}}]"#),
                r#", {"dst": "::/0"}"#,
                r#", {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}"#,
            ),
        };
        format!(
            r#"{{"cniVersion": "1.0.0", "name": "e2e{number}", "plugins": [{{"type": "bridge", "bridge": {bridge:?},
"isGateway": true, "ipMasq": false, "ipam": {{"type": "host-local", "dataDir": {state:?},
"ranges": [[{{"subnet": "10.77.{number}.0/24"}}]{ranges}], "routes": [{{"dst": "0.0.0.0/0"}}{routes}]}}}}{ports}]}}"#
        )
    }

    fn bridge(&self) -> String {
        format!("e2e{}", self.number)
    }

    /// A program of this release.
    fn program(&self, name: &str) -> PathBuf {
        match self.release {
            Release::Current => std::env::var_os(OTHER).map(PathBuf::from).unwrap_or_default().join(name),
            Release::Older => Path::new(OLDER).join(name),
        }
    }

    /// Starts the process, again where it was killed.
    ///
    /// # Panics
    /// Where it does not answer.
    pub fn launch(&mut self) {
        let log = fs::File::options().append(true).create(true).open(self.path("log")).expect("a log");
        let process = Command::new(self.program("containerd"))
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
        Outcome::of(&mut self.ctr_command(arguments))
    }

    /// The same, to be started.
    pub fn ctr_command(&self, arguments: &[&str]) -> Command {
        let socket = self.path("sock").display().to_string();
        let mut command = Command::new("timeout");
        command.arg(LIMIT_S).arg(self.program("ctr")).args(["-a", &socket]).args(arguments);
        command
    }

    /// `ctr run --rm` with the runtime of this project.
    pub fn run(&self, options: &[&str], id: &str, command: &[&str]) -> Outcome {
        Outcome::of(&mut self.run_command(options, id, command))
    }

    /// The same, to be started.
    pub fn run_command(&self, options: &[&str], id: &str, command: &[&str]) -> Command {
        let runtime = ["run", "--rm", "--runtime", "io.containerd.nacre.v2"];
        self.ctr_command(&[&runtime, options, &[IMAGE, id], command].concat())
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its process; none where it was killed.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
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
        let _ = Command::new("ip").args(["link", "delete", &self.bridge()]).status();
    }
}
