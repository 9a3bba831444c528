//! A node that the tests of a module share: one containerd, and one pod for those that do not disturb each other.
//!
//! A containerd and a pod take longer to start than most cases take to run. The first test of the module starts them, the
//! last one ends them and then asserts that all of it is gone. How many tests there will be is asked of the test program
//! itself, with this run's own arguments, so a run of one test is one start and one end. Each test takes its own
//! census as [`TestSandbox`](crate::TestSandbox) does, with the pods and containers that the runtime lists: what it makes, it
//! removes. After a test that failed the next one gets a node of its own.
//!
//! Every test below the module must enter the node, and no other test.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::containerd::Containerd;
use crate::cri::{Cri, Pod, pod_config};
use crate::sandbox::Outcome;
use crate::traces::Traces;
use nacre_protocol::cri::{
    Empty, ListPodSandboxRequest, ListPodSandboxResponse, PodSandboxConfig, PodSandboxId,
};

/// Name of the pod that tests share.
const SHARED: &str = "shared";

/// The node of a module's tests.
pub struct Shared {
    module: &'static str,
    start: fn() -> Containerd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    node: Option<Node>,
    /// Tests still to come; `None` before the first.
    left: Option<usize>,
}

/// A containerd with its CRI.
struct Node {
    before: Traces,
    containerd: Containerd,
    cri: Cri,
    /// Id of the shared pod.
    shared: Option<String>,
}

impl Shared {
    /// For the tests below `module`, which is `module_path!()`.
    pub const fn new(module: &'static str, start: fn() -> Containerd) -> Self {
        Self { module, start, state: Mutex::new(State { node: None, left: None }) }
    }

    /// The node, for a test that makes pods of its own.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn enter(&self) -> Stay<'_> {
        self.come(false)
    }

    /// The node with its shared pod, for a test that makes containers in it.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn share(&self) -> Stay<'_> {
        self.come(true)
    }

    fn come(&self, share: bool) -> Stay<'_> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.left.is_none() {
            state.left = Some(selected(self.module));
        }
        let node = state.node.get_or_insert_with(|| Node::start(self.start));
        if share {
            node.share();
        }
        let before = node.census();
        Stay { state, before }
    }
}

impl Node {
    fn start(start: fn() -> Containerd) -> Self {
        let before = Traces::now();
        let containerd = start();
        let cri = containerd.cri();
        Self { before, containerd, cri, shared: None }
    }

    fn share(&mut self) {
        if self.shared.is_none() {
            let pod = Pod::run(&self.cri, SHARED, &self.containerd.path("logs"));
            self.shared = Some(pod.id().to_owned());
        }
    }

    fn census(&self) -> Census {
        Census { traces: Traces::now(), listed: self.listed() }
    }

    /// Ids of all pods and containers.
    fn listed(&self) -> Vec<String> {
        let pods = self.cri.pods(|_| {}).into_iter().map(|pod| pod.id);
        let containers = self.cri.containers(|_| {}).into_iter().map(|container| container.id);
        let mut all: Vec<String> = pods.chain(containers).collect();
        all.sort();
        all
    }

    fn end(self) {
        let Self { before, containerd, cri, shared } = self;
        if let Some(id) = shared {
            Pod::again(&cri, &id, SHARED, &containerd.path("logs")).end();
        }
        drop(containerd);
        before.assert_nothing_new();
    }

    /// Takes away what a failed test has left, as far as it lets itself be.
    fn abandon(self) {
        let all = self.cri.call::<_, ListPodSandboxResponse>("ListPodSandbox", &ListPodSandboxRequest::new());
        for pod in all.into_iter().flat_map(|reply| reply.items) {
            let pod = PodSandboxId { pod_sandbox_id: pod.id, ..Default::default() };
            for method in ["StopPodSandbox", "RemovePodSandbox"] {
                if let Err(refusal) = self.cri.call::<_, Empty>(method, &pod) {
                    eprintln!("{method} {}: {refusal:?}", pod.pod_sandbox_id);
                }
            }
        }
    }
}

/// What there was when a test began.
struct Census {
    traces: Traces,
    listed: Vec<String>,
}

/// A test's stay on the node.
pub struct Stay<'a> {
    state: MutexGuard<'a, State>,
    before: Census,
}

impl Stay<'_> {
    fn node(&self) -> &Node {
        self.state.node.as_ref().expect("a stay has a node")
    }

    /// The runtime.
    pub fn cri(&self) -> &Cri {
        &self.node().cri
    }

    /// The shared pod.
    ///
    /// # Panics
    /// Where the test has not come to share.
    pub fn pod(&self) -> Pod<'_> {
        let id = self.node().shared.as_ref().expect("a test with the shared pod begins with `share`");
        Pod::again(self.cri(), id, SHARED, &self.path("logs"))
    }

    /// The configuration of a pod of the test's own.
    pub fn config(&self, name: &str) -> PodSandboxConfig {
        pod_config(name, &self.path("logs"))
    }

    /// A pod of the test's own, which ends it.
    #[track_caller]
    pub fn run(&self, name: &str) -> Pod<'_> {
        self.run_config(self.config(name))
    }

    /// The same with a configuration of its own.
    #[track_caller]
    pub fn run_config(&self, config: PodSandboxConfig) -> Pod<'_> {
        Pod::run_config(self.cri(), "nacre", config)
    }

    /// A path of the node's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.node().containerd.path(name)
    }

    /// A new directory of the node's, for a volume.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path("volumes").join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        path
    }

    /// A file of the node's with this text.
    ///
    /// # Panics
    /// Where it cannot be written.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir("files").join(name);
        std::fs::write(&path, text).expect("a file");
        path
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.state.left = Some(self.state.left.unwrap_or(1).saturating_sub(1));
        if std::thread::panicking() {
            if let Some(node) = self.state.node.take() {
                node.abandon();
            }
            return;
        }
        let listed = self.node().listed();
        let left = self.before.traces.left_behind();
        let last = self.state.left == Some(0);
        if let Some(node) = self.state.node.take_if(|_| last) {
            node.end();
        }
        assert_eq!(listed, self.before.listed, "pods and containers are left, or gone");
        assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    }
}

/// How many tests below a module this process will run.
fn selected(module: &str) -> usize {
    // The crate's own name is no part of a test's.
    let prefix = format!("{}::", module.split_once("::").map_or(module, |(_, rest)| rest));
    // Still this program where its file was replaced since.
    let mut list = Command::new("/proc/self/exe");
    list.args(std::env::args_os().skip(1)).args(["--list", "--format", "terse"]);
    let listed = Outcome::of(&mut list).ok().stdout;
    listed.lines().filter(|line| line.starts_with(&prefix) && line.ends_with(": test")).count()
}
