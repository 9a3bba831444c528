//! Hooks of an OCI configuration: programs of the host that the caller wants run at points of a container's life (runtime
//! specification, config.md, "POSIX-platform Hooks"). Docker and nerdctl set networks up with them.
//!
//! | hook | when | a failure |
//! |---|---|---|
//! | `prestart`, `createRuntime` | the container is created, its program not started | fails the creation |
//! | `poststart` | the program runs | is told in the log |
//! | `poststop` | the container is deleted | is told in the log |
//!
//! They come from whoever wrote `config.json`, a program of the host's root, and run as the shim does. `createContainer` and
//! `startContainer` belong into the container's namespaces, where no program of the host is: the agent refuses them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::text::harmless;

/// The runtime specification whose state is told.
const OCI_VERSION: &str = "1.2.0";

/// For a hook that names no limit of its own.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// How much of a hook's standard error is repeated.
const MAX_WORDS: usize = 512;

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Hook {
    /// Absolute path on the host.
    pub path: PathBuf,
    /// Arguments, its name first; none: the path is its name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its whole environment, `NAME=VALUE`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds that it may take.
    #[serde(default)]
    pub timeout: Option<u64>,
}

/// The hooks of a configuration that run on the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// `prestart`, then `createRuntime`.
    pub create: Vec<Hook>,
    /// `poststart`.
    pub poststart: Vec<Hook>,
    /// `poststop`.
    pub poststop: Vec<Hook>,
    /// The configuration's, which hooks are told.
    pub annotations: BTreeMap<String, String>,
}

/// A container's state as the specification has it (runtime.md, "State").
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State<'a> {
    oci_version: &'static str,
    id: &'a str,
    status: &'static str,
    pid: u32,
    bundle: &'a Path,
    annotations: &'a BTreeMap<String, String>,
}

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// A path that could be anywhere.
    #[error("hook {0} is not an absolute path")]
    Path(PathBuf),
    /// It could not be run, or not be told the state.
    #[error("cannot run hook {path}")]
    Run {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended with something else than 0.
    #[error("hook {path} failed ({status}): {words}")]
    Failed {
        /// The program.
        path: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        words: String,
    },
    /// It did not end.
    #[error("hook {path} was ended after {} s", limit.as_secs())]
    TimedOut {
        /// The program.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
    },
}

impl Hooks {
    /// The state that hooks are told; `pid` is the VMM's, whose network namespace is the container's.
    pub fn state<'a>(&'a self, id: &'a str, status: &'static str, pid: u32, bundle: &'a Path) -> State<'a> {
        State { oci_version: OCI_VERSION, id, status, pid, bundle, annotations: &self.annotations }
    }
}

/// Runs hooks one after the other, up to the first that fails.
///
/// # Errors
/// See [`HookError`].
pub async fn run(hooks: &[Hook], state: &State<'_>) -> Result<(), HookError> {
    if hooks.is_empty() {
        return Ok(());
    }
    let text = serde_json::to_vec(state).unwrap_or_default();
    for hook in hooks {
        run_one(hook, &text, state.bundle).await?;
    }
    Ok(())
}

async fn run_one(hook: &Hook, state: &[u8], bundle: &Path) -> Result<(), HookError> {
    let path = || hook.path.clone();
    if !hook.path.is_absolute() {
        return Err(HookError::Path(path()));
    }
    let limit = hook.timeout.map_or(DEFAULT_LIMIT, Duration::from_secs);
    let mut command = Command::new(&hook.path);
    if let [name, arguments @ ..] = hook.args.as_slice() {
        command.arg0(name).args(arguments);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|entry| entry.split_once('='))).current_dir(bundle);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let exchange = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A hook need not read it.
            let _ = stdin.write_all(state).await;
        }
        child.wait_with_output().await
    };
    let ended = tokio::time::timeout(limit, exchange).await;
    let output = ended.map_err(|_| HookError::TimedOut { path: path(), limit })?;
    let output = output.map_err(|source| HookError::Run { path: path(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let words = harmless(String::from_utf8_lossy(&output.stderr).trim(), MAX_WORDS);
    Err(HookError::Failed { path: path(), status: output.status, words })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Option<u64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook { path: "/bin/sh".into(), args, env: vec!["PATH=/usr/bin:/bin".into()], timeout }
    }

    async fn run_in(dir: &Path, hooks: &[Hook]) -> Result<(), HookError> {
        let owner = Hooks::default();
        run(hooks, &owner.state("web", "created", 7, dir)).await
    }

    #[tokio::test]
    async fn hook_reads_the_state_and_runs_in_the_bundle() {
        let dir = tempfile::tempdir().unwrap();
        run_in(dir.path(), &[sh("cat > state", None)]).await.unwrap();
        let text = std::fs::read(dir.path().join("state")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            (&state["id"], &state["status"], &state["pid"]),
            (&"web".into(), &"created".into(), &7.into())
        );
        assert_eq!(state["bundle"], dir.path().to_str().unwrap());
    }

    #[tokio::test]
    async fn hook_that_fails_stops_the_rest_and_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let hooks = [sh("echo no address >&2; exit 3", None), sh("touch later", None)];
        let error = run_in(dir.path(), &hooks).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("no address"), "{error}");
        assert!(!dir.path().join("later").exists());
    }

    #[tokio::test]
    async fn hook_that_does_not_end_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let error = run_in(dir.path(), &[sh("exec sleep 100", Some(0))]).await.unwrap_err();
        assert!(matches!(error, HookError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn relative_path_is_refused() {
        let hook = Hook { path: "evil".into(), ..sh("", None) };
        let error = run_in(Path::new("/"), &[hook]).await.unwrap_err();
        assert!(matches!(error, HookError::Path(_)), "{error}");
    }
}
