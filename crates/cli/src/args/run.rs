//! The options of `nacre run`.

use std::path::PathBuf;

use clap::Args;

use crate::detach::DetachKeys;

/// Options that mean what they mean in Docker.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Remove the container when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Run in the background and print the container's id
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keys that leave the terminal and let the process live on
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: DetachKeys,
    /// Name of the container
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Host name in the container
    #[arg(long)]
    pub(crate) hostname: Option<String>,

    /// Set an environment variable; without a value, take the caller's
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User, and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Program instead of the image's entry point; empty: none
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Run the program under an init that passes signals on and reaps orphans
    #[arg(long)]
    pub(crate) init: bool,
    /// Label of the container
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<String>,
    /// Signal that `nacre stop` sends
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,

    /// Give the container a directory or file of the host
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    pub(crate) volume: Vec<String>,
    /// Give the container an empty file system in memory
    #[arg(long, value_name = "DST[:OPTIONS]")]
    pub(crate) tmpfs: Vec<String>,
    /// Make the root file system read-only
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", default_value = "64m")]
    pub(crate) shm_size: String,

    /// Most memory, with a suffix of b, k, m or g
    #[arg(short, long, value_name = "BYTES")]
    pub(crate) memory: Option<String>,
    /// Number of CPUs, fractions allowed
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<String>,
    /// Most processes; -1 or 0: no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Limit of a resource of each process
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    pub(crate) ulimit: Vec<String>,

    /// Add a capability
    #[arg(long, value_name = "CAP")]
    pub(crate) cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "CAP")]
    pub(crate) cap_drop: Vec<String>,
    /// no-new-privileges, seccomp=unconfined or seccomp=FILE
    #[arg(long, value_name = "OPTION")]
    pub(crate) security_opt: Vec<String>,
    /// Give the container every capability and device of its guest; never the host's
    #[arg(long)]
    pub(crate) privileged: bool,
    /// Network of the container; only `none` so far
    #[arg(long, visible_alias = "net", value_name = "NETWORK", default_value = "none")]
    pub(crate) network: String,

    /// When to pull the image
    #[arg(long, value_enum, default_value_t = PullPolicy::Missing)]
    pub(crate) pull: PullPolicy,
    /// Speak plain http to the image's registry (an authority of your own for https: /etc/nacre/certs.d/HOST)
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Write the milliseconds of each phase to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) phases: Option<PathBuf>,
    /// Write the container's id to a file, which must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<PathBuf>,

    /// Name with tag or digest, `oci:DIR:TAG`, `oci-archive:FILE` or `docker-archive:FILE`
    pub(crate) image: String,
    /// Arguments instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// When `run` asks the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PullPolicy {
    /// Each time
    Always,
    /// Where the image is not in the store
    Missing,
    /// Never
    Never,
}
