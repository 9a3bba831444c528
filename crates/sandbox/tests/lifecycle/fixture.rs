//! A host for one test: assets, a bundle, a directory for sandboxes; and the check that nothing is left there.

use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use nacre_protocol::task::OnExit;
use nacre_sandbox::config::{AssetSettings, Config, TimeoutSettings};
use nacre_sandbox::error::SandboxError;
use nacre_sandbox::machine::Settings;
use nacre_sandbox::plan::Mount;
use nacre_sandbox::sandbox::{self, CreateRequest, Force, ProcessId, Sandbox, SandboxEvent};
use nacre_sandbox::stdio::StdioRequest;
use tempfile::TempDir;
use tokio::sync::mpsc;

pub(crate) type Case = fn(Host) -> Pin<Box<dyn Future<Output = Host>>>;

/// Runs a test with a host of its own, then checks that the host is as it was.
pub(crate) fn run(case: Case) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let host =
            tokio::time::timeout(Duration::from_secs(60), case(Host::new())).await.expect("the test hangs");
        host.end().await;
    });
}

/// The host.
pub(crate) struct Host {
    dir: TempDir,
    pub(crate) sandbox: Sandbox,
    pub(crate) events: mpsc::Receiver<SandboxEvent>,
    /// PIDs of VMMs that must be gone at the end.
    pub(crate) vmms: Vec<u32>,
}

/// Names the init of the one container.
pub(crate) fn init() -> ProcessId {
    ProcessId { container: "web".into(), exec: String::new() }
}

/// Names the init of any container.
pub(crate) fn init_of(container: &str) -> ProcessId {
    ProcessId { container: container.into(), exec: String::new() }
}

/// Names an exec in it.
pub(crate) fn exec(id: &str) -> ProcessId {
    ProcessId { container: "web".into(), exec: id.into() }
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        for name in ["assets", "bundle", "run", "member/rootfs"] {
            std::fs::create_dir_all(path.join(name)).unwrap();
        }
        std::fs::write(path.join("assets/vmlinux"), b"\x7fELF").unwrap();
        std::fs::write(path.join("assets/initramfs.cpio"), b"070701").unwrap();
        for program in ["nacre-vmm", "nacre-fs"] {
            std::fs::copy(std::env::current_exe().unwrap(), path.join("assets").join(program)).unwrap();
        }
        let mut blob = vec![0; 8192];
        blob[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
        std::fs::write(path.join("layer.erofs"), blob).unwrap();
        let config = Config {
            assets: AssetSettings { dir: Some(path.join("assets")), ..AssetSettings::default() },
            timeouts: TimeoutSettings { boot_ms: 20_000, agent_ms: 20_000, ..TimeoutSettings::default() },
            ..Config::default()
        };
        let (sandbox, events) = spawn(path, config);
        Self { dir, sandbox, events, vmms: Vec::new() }
    }

    /// Starts over with shorter waits, for guests that do not answer.
    pub(crate) fn impatient(mut self) -> Self {
        let config = Config {
            assets: AssetSettings { dir: Some(self.path("assets")), ..AssetSettings::default() },
            timeouts: TimeoutSettings { boot_ms: 500, agent_ms: 500, kill_ms: 500 },
            ..Config::default()
        };
        (self.sandbox, self.events) = spawn(self.dir.path(), config);
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the "kernel" does instead of booting.
    pub(crate) fn kernel(&self, what: &str) {
        std::fs::write(self.path("assets/vmlinux"), format!("\x7fELF{what}")).unwrap();
    }

    /// Makes the container; the guest plays `args`.
    pub(crate) async fn create(&mut self, args: &[&str]) -> Result<u32, SandboxError> {
        self.create_with(args, StdioRequest::default(), OnExit::Wait).await
    }

    pub(crate) async fn create_with(
        &mut self,
        args: &[&str],
        stdio: StdioRequest,
        on_exit: OnExit,
    ) -> Result<u32, SandboxError> {
        let spec = serde_json::json!({
            "ociVersion": "1.2.0", "hostname": "web", "process": {"args": args, "cwd": "/"}, "root": {"path": "rootfs"},
        });
        std::fs::write(self.path("bundle/config.json"), spec.to_string()).unwrap();
        let layer = self.path("layer.erofs").to_str().unwrap().to_owned();
        let request = CreateRequest {
            id: "web".into(),
            bundle: self.path("bundle"),
            rootfs: vec![Mount { kind: "erofs".into(), source: layer, ..Mount::default() }],
            stdio,
            on_exit,
            late_links: false,
        };
        let pid = self.sandbox.create(request).await?;
        self.vmms.push(pid);
        Ok(pid)
    }

    /// Makes the sandbox container of a pod.
    pub(crate) async fn create_pod(&mut self, args: &[&str]) -> Result<u32, SandboxError> {
        let pid = self.sandbox.create(self.request("web", "bundle", "sandbox", args)).await?;
        self.vmms.push(pid);
        Ok(pid)
    }

    /// Makes a further container of the pod `pod`.
    pub(crate) async fn join(&mut self, id: &str, args: &[&str]) -> Result<u32, SandboxError> {
        let mut request = self.request(id, "member", "container", args);
        request.rootfs.clear();
        self.sandbox.create(request).await
    }

    /// Makes a further container of the pod, with a root of EROFS layers.
    pub(crate) async fn join_with_layers(&mut self, id: &str, args: &[&str]) -> Result<u32, SandboxError> {
        self.sandbox.create(self.request(id, "member", "container", args)).await
    }

    fn request(&self, id: &str, bundle: &str, kind: &str, args: &[&str]) -> CreateRequest {
        let spec = serde_json::json!({
            "ociVersion": "1.2.0", "process": {"args": args, "cwd": "/"}, "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "network"}]},
            "annotations": {
                "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": "web",
            },
        });
        std::fs::write(self.path(bundle).join("config.json"), spec.to_string()).unwrap();
        let layer = self.path("layer.erofs").to_str().unwrap().to_owned();
        CreateRequest {
            id: id.into(),
            bundle: self.path(bundle),
            rootfs: vec![Mount { kind: "erofs".into(), source: layer, ..Mount::default() }],
            ..CreateRequest::default()
        }
    }

    /// A FIFO whose bytes are collected until its last writer closes it.
    pub(crate) fn output(&self, name: &str) -> (String, std::thread::JoinHandle<Vec<u8>>) {
        let path = self.fifo(name);
        let mut fifo = open_reader(Path::new(&path));
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            fifo.read_to_end(&mut bytes).unwrap();
            bytes
        });
        (path, reader)
    }

    pub(crate) fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) async fn next_event(&mut self) -> SandboxEvent {
        self.events.recv().await.unwrap()
    }

    /// Shuts down and checks that nothing is left.
    async fn end(mut self) {
        let _ = self.sandbox.shutdown(Force::Now).await;
        while let Some(event) = self.events.recv().await {
            if event == SandboxEvent::Finished {
                break;
            }
        }
        let left: Vec<_> = walk(&self.path("run"));
        assert!(left.is_empty(), "left behind: {left:?}");
        for pid in &self.vmms {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "VMM {pid} is left behind");
        }
    }
}

fn spawn(dir: &Path, config: Config) -> (Sandbox, mpsc::Receiver<SandboxEvent>) {
    sandbox::spawn(Settings {
        namespace: "default".parse().unwrap(),
        id: "web".parse().unwrap(),
        run_dir: dir.join("run"),
        config,
        files: Vec::new(),
    })
}

/// Opens for reading without waiting for a writer, then reads as any reader does: the first read waits for one.
fn open_reader(path: &Path) -> impl Read + Send + 'static {
    struct Patient(std::fs::File);
    impl Read for Patient {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            loop {
                let mut fds = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
                rustix::event::poll(&mut fds, None)?;
                match self.0.read(bytes) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
            }
        }
    }
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    Patient(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap().into())
}

/// Everything below a directory, but for directories of ours that stay (`jail`).
fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && path.ends_with("jail") {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}
