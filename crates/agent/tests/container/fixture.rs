//! A scratch guest with an image, and configurations to change.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock, atomic::AtomicU32, atomic::Ordering};
use std::thread;
use std::time::Duration;

use nacre_agent::container::{
    BundleFile, ChildStdio, CreateError, CreateInput, CreatedContainer, CreatedProcess, ExecInput, Guest,
    RootfsSource, SharedMemory, Sockets, Volumes, create, create_exec,
};
use nacre_agent::process::{Child, Children, Spawned, reap_for_ever};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long any program of a test may run.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest of one test: its mounts are seen by the test's thread alone and go with it.
pub(crate) struct TestGuest {
    pub(crate) guest: Guest,
    dir: TempDir,
}

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: u32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// One reaper for the whole test process, as in the guest.
fn children() -> Arc<Children> {
    static CHILDREN: OnceLock<Arc<Children>> = OnceLock::new();
    let start = || {
        let children = Arc::new(Children::default());
        let reaped = Arc::clone(&children);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(reap_for_ever(reaped)).unwrap();
        });
        children
    };
    Arc::clone(CHILDREN.get_or_init(start))
}

/// Runs a program of this machine; the reaper, which takes every status, gives it back.
pub(crate) fn run(command: &mut Command) -> String {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    command.stdin(Stdio::null()).stdout(write);
    let spawned = children().spawn(|| -> std::io::Result<Spawned> {
        let pid = Pid::from_raw(command.spawn()?.id().try_into().unwrap()).unwrap();
        Ok(Spawned { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())? })
    });
    // The command holds the writing end until it is told otherwise.
    command.stdout(Stdio::null());
    let child = spawned.unwrap();
    let output = text(&mut read.into());
    assert_eq!(wait(&child), 0, "{command:?}");
    output
}

fn bind(source: &Path, target: &Path, flags: MsFlags) {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>).unwrap();
    if flags.contains(MsFlags::MS_RDONLY) {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags;
        mount(None::<&str>, target, None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl TestGuest {
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::Uid::effective().is_root(), "these tests need root");
        // The thread's own mount namespace; nothing of it reaches the machine.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = tempfile::Builder::new().prefix("nacre-agent").tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["state", "shares", "shares/usr", "shares/rootfs", "bin"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // As in the guest: nodes work in the state directory, wherever the machine has its temporary files.
        mount(Some("state"), &path("state"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        bind(Path::new("/usr"), &path("shares/usr"), MsFlags::MS_RDONLY);
        let exe = path("bin/nacre-agent");
        File::create(&exe).unwrap();
        bind(Path::new(env!("CARGO_BIN_EXE_nacre-agent")), &exe, MsFlags::MS_RDONLY);
        let guest = Guest {
            agent_exe: exe,
            cgroup_root: cgroup_root(),
            state_dir: path("state"),
            shares_dir: path("shares"),
            children: children(),
            shared_memory: Arc::new(SharedMemory::new(path("state/shm"))),
            sockets: Arc::new(Sockets::new(path("state/sockets"))),
            volumes: Arc::new(Volumes::new(path("volumes"))),
            launcher: Arc::default(),
            tracers: Arc::default(),
        };
        let this = Self { guest, dir };
        this.make_image();
        this
    }

    fn make_image(&self) {
        for name in ["usr", "dev", "proc", "sys", "tmp", "root", "etc"] {
            fs::create_dir(self.image(name)).unwrap();
        }
        fs::set_permissions(self.image("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), self.image(name)).unwrap();
        }
        fs::write(self.image("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/var/www:/bin/sh\n")
            .unwrap();
        fs::write(self.image("etc/group"), "root:x:0:\nwww:x:33:\naudio:x:29:web\n").unwrap();
    }

    /// A path in the image, seen from outside.
    pub(crate) fn image(&self, path: &str) -> PathBuf {
        self.dir.path().join("shares/rootfs").join(path)
    }

    /// A path in the shared directory, seen from outside.
    pub(crate) fn share(&self, path: &str) -> PathBuf {
        self.guest.shares_dir.join(path)
    }

    /// A configuration as `runc spec` makes it, with the image's /usr, for a shell script.
    pub(crate) fn spec(&self, script: &str) -> Value {
        let mut spec = default_spec();
        spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
        let usr = json!({"destination": "/usr", "source": self.share("usr"), "options": ["rbind", "ro"]});
        spec["mounts"].as_array_mut().unwrap().push(usr);
        spec
    }

    pub(crate) fn create(&self, spec: &Value) -> Result<Running, CreateError> {
        self.create_with_files(spec, Vec::new())
    }

    pub(crate) fn create_with_files(
        &self,
        spec: &Value,
        files: Vec<BundleFile>,
    ) -> Result<Running, CreateError> {
        self.make(spec, RootfsSource::Shared { name: "rootfs".into() }, files)
    }

    pub(crate) fn create_from(&self, spec: &Value, rootfs: RootfsSource) -> Result<Running, CreateError> {
        self.make(spec, rootfs, Vec::new())
    }

    fn make(
        &self,
        spec: &Value,
        rootfs: RootfsSource,
        files: Vec<BundleFile>,
    ) -> Result<Running, CreateError> {
        let (stdio, output) = pipes();
        let spec_json = serde_json::to_vec(spec).unwrap();
        let input = CreateInput { id: fresh_id(), spec_json, rootfs, files, devices: Vec::new(), stdio };
        let created = create(&self.guest, input)?;
        Ok(Running { created, output: Some(output) })
    }

    pub(crate) fn create_with_terminal(&self, spec: &Value) -> Result<CreatedContainer, CreateError> {
        let rootfs = RootfsSource::Shared { name: "rootfs".into() };
        let stdio = ChildStdio::Terminal { columns: 101, rows: 37 };
        create(
            &self.guest,
            CreateInput {
                id: fresh_id(),
                spec_json: serde_json::to_vec(spec).unwrap(),
                rootfs,
                files: Vec::new(),
                devices: Vec::new(),
                stdio,
            },
        )
    }

    /// Creates, starts, waits and removes.
    pub(crate) fn run(&self, spec: &Value) -> Ended {
        self.create(spec).unwrap_or_else(|error| panic!("{}", chain(&error))).finish()
    }

    /// Kills the launcher, and waits until it is reaped: its zombie has no command line any more.
    pub(crate) fn kill_launcher(&self) {
        let exe = self.guest.agent_exe.canonicalize().unwrap();
        let pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let launcher = |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == exe);
        let pid = Pid::from_raw(pids.into_iter().find(launcher).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        while fs::exists(format!("/proc/{}", pid.as_raw_nonzero())).unwrap() {
            thread::yield_now();
        }
    }

    /// Runs a shell script in the default configuration.
    pub(crate) fn sh(&self, script: &str) -> Ended {
        self.run(&self.spec(script))
    }

    /// The whole text of the error that creation gives.
    pub(crate) fn refusal(&self, spec: &Value) -> String {
        match self.create(spec) {
            Ok(running) => panic!("was created, and says {:?}", running.finish()),
            Err(error) => chain(&error),
        }
    }

    pub(crate) fn exec(&self, running: &Running, process: &Value) -> Result<Executed, CreateError> {
        let (stdio, output) = pipes();
        let input = ExecInput { process_json: serde_json::to_vec(process).unwrap(), stdio };
        let created = create_exec(&self.guest, &running.created.container, input)?;
        Ok(Executed { created, output })
    }
}

/// A container with its output.
pub(crate) struct Running {
    pub(crate) created: CreatedContainer,
    output: Option<Output>,
}

impl Running {
    /// Lets init go, and keeps the container.
    pub(crate) fn start(mut self) -> Started {
        let CreatedContainer { init, container, .. } = self.created;
        let CreatedProcess { child, starter, .. } = init;
        starter.start().unwrap();
        Started { child, container, output: self.output.take().unwrap() }
    }

    /// Lets init go, waits for its end and removes the container.
    pub(crate) fn finish(self) -> Ended {
        self.start().finish()
    }
}

/// A container whose init runs.
pub(crate) struct Started {
    pub(crate) child: Child,
    pub(crate) container: Arc<nacre_agent::container::Container>,
    output: Output,
}

impl Started {
    pub(crate) fn finish(self) -> Ended {
        let ended = self.output.wait(&self.child);
        self.container.remove().unwrap();
        ended
    }

    /// Runs a process in it to its end.
    pub(crate) fn exec(&self, guest: &TestGuest, process: &Value) -> Result<Ended, CreateError> {
        let (stdio, output) = pipes();
        let input = ExecInput { process_json: serde_json::to_vec(process).unwrap(), stdio };
        let CreatedProcess { child, starter, .. } = create_exec(&guest.guest, &self.container, input)?;
        starter.start().unwrap();
        Ok(output.wait(&child))
    }

    /// Reads a line that init prints, as proof that it has come so far.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.output.stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Writes to init's standard input.
    pub(crate) fn say(&mut self, text: &str) {
        self.output.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }
}

/// A process that waits before its exec.
pub(crate) struct Executed {
    pub(crate) created: CreatedProcess,
    output: Output,
}

impl Executed {
    pub(crate) fn finish(self) -> Ended {
        let CreatedProcess { child, starter, .. } = self.created;
        starter.start().unwrap();
        self.output.wait(&child)
    }
}

struct Output {
    stdin: Option<File>,
    stdout: File,
    stderr: File,
}

impl Output {
    fn wait(mut self, child: &Child) -> Ended {
        self.stdin = None;
        let mut errors = self.stderr;
        let stderr = thread::spawn(move || text(&mut errors));
        let stdout = text(&mut self.stdout);
        assert!(child.wait_ended(PATIENCE), "the program does not end");
        let exit = wait(child);
        Ended { status: exit, stdout, stderr: stderr.join().unwrap() }
    }
}

/// Exit status, once the reaper has it.
pub(crate) fn wait(child: &Child) -> u32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().status })
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn pipes() -> (ChildStdio, Output) {
    let pipe =
        || -> (OwnedFd, OwnedFd) { rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap() };
    let ((stdin, stdin_write), (stdout_read, stdout), (stderr_read, stderr)) = (pipe(), pipe(), pipe());
    let output =
        Output { stdin: Some(stdin_write.into()), stdout: stdout_read.into(), stderr: stderr_read.into() };
    (ChildStdio::Files { stdin, stdout, stderr }, output)
}

fn fresh_id() -> nacre_protocol::id::ContainerId {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("test-{}-{number}", std::process::id()).parse().unwrap()
}

/// The unified hierarchy, of a hybrid machine too.
pub(crate) fn cgroup_root() -> PathBuf {
    let unified = PathBuf::from("/sys/fs/cgroup/unified");
    if unified.join("cgroup.procs").exists() { unified } else { "/sys/fs/cgroup".into() }
}

/// Whether this machine's cgroup v2 has controllers, so that limits can be set.
pub(crate) fn has_controllers() -> bool {
    fs::read_to_string(cgroup_root().join("cgroup.controllers")).is_ok_and(|text| text.contains("memory"))
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes: Vec<_> =
        std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    causes.join(": ")
}

/// The configuration that `runc spec` writes.
pub(crate) fn default_spec() -> Value {
    let caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "nacre",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                           {"type": "mount"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
