//! What `nacre` and the shim say to each other beyond containerd's Task API: the options of a Create request, the
//! departure of its caller, and two files in the bundle. All of it is JSON.

use serde::{Deserialize, Serialize};

/// `type_url` of the `options` in a CreateTaskRequest whose value is [`TaskOptions`] as JSON. Other options
/// (containerd's runc options, say) are ignored.
pub const OPTIONS_TYPE_URL: &str = "types.nacre.dev/TaskOptions";

/// Scheme of a stdout or stderr URI whose file gets one [`LogLine`] as JSON a line, the form of Docker's
/// json-file log driver. Both streams of a container may name the same file.
pub const LOG_SCHEME: &str = "json-file";

/// File in the bundle with an [`ExitRecord`], written when the container has ended.
pub const EXIT_FILE: &str = "exit.json";

/// File in the bundle with [`Phases`] as JSON, written when the container has ended.
pub const PHASES_FILE: &str = "phases.json";

/// Options of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskOptions {
    /// What the shim does when the container has ended.
    #[serde(default)]
    pub on_exit: OnExit,
    /// The caller puts no network links into the VMM's namespace: the VM needs no room for them.
    #[serde(default)]
    pub no_links: bool,
}

/// `type_url` of the `resources` in an UpdateTaskRequest whose value is a [`Leave`] as JSON.
pub const LEAVE_TYPE_URL: &str = "types.nacre.dev/Leave";

/// The caller that made a process goes away, and the process lives on (a detach key). The Task API has no request for
/// this: containerd stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leave {
    /// The exec; empty: the container's init. An exec that was left is forgotten when it has ended.
    #[serde(default)]
    pub exec_id: String,
    /// Where output goes from now on that went to the caller's FIFOs: a URI as for stdout, or empty: nowhere.
    #[serde(default)]
    pub output: String,
    /// What the shim does when the container has ended; at once, where it has.
    #[serde(default)]
    pub on_exit: OnExit,
}

/// What a shim does by itself when its container has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExit {
    /// Waits for Delete and Shutdown, as containerd expects.
    #[default]
    Wait,
    /// Takes everything down but the bundle, and ends; [`EXIT_FILE`] has the status.
    Shutdown,
    /// The same, and removes the bundle directory.
    Remove,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit status; 128 + n for a process that signal n ended.
    pub exit_status: u32,
    /// Nanoseconds since the epoch.
    pub exited_at_ns: i64,
    /// The memory limit ended it.
    pub oom_killed: bool,
    /// Why the sandbox ended, where not because its process did: a dead VM, a guest kernel panic.
    pub failure: Option<String>,
}

/// Milliseconds of each phase of a stand-alone container's life, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Phases {
    /// From the Create request to the start of `nacre-vmm`.
    pub plan: f64,
    /// From there until the vCPUs run.
    pub vm_start: f64,
    /// From there until the guest's PID 1 runs, and the way of the agent's answer to the host.
    pub kernel: f64,
    /// From the start of PID 1 until the agent has answered, on the guest's clock.
    pub agent: f64,
    /// The agent's mounts of the root file system.
    pub rootfs: f64,
    /// The rest from the agent's CreateContainer request to the exec of the program.
    pub container: f64,
    /// Of the two before, what the agent itself measured: from its hearing of the requests to the exec.
    #[serde(default)]
    pub create_in_guest: f64,
    /// From there to the end of the program.
    pub run: f64,
    /// From there until everything is taken down.
    pub exit: f64,
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// The text, with its newline where it had one.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// RFC 3339, nanoseconds, UTC.
    pub time: String,
}
