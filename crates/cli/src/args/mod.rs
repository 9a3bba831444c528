//! The words of the command line, as Docker's where Docker has them.

pub(crate) mod run;

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

pub(crate) use run::RunArgs;

use crate::detach::DetachKeys;

/// Run OCI images, each container in a micro-VM of its own.
#[derive(Debug, Parser)]
#[command(name = "nacre", version, max_term_width = 110, arg_required_else_help = true)]
pub(crate) struct Args {
    /// Directory of images and containers
    #[arg(long, global = true, env = "NACRE_ROOT", value_name = "DIR", default_value = "/var/lib/nacre")]
    pub(crate) root: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new container
    Run(Box<RunArgs>),
    /// Run a command in a running container
    Exec(ExecArgs),
    /// List containers
    Ps(PsArgs),
    /// Print what a detached container wrote
    Logs(LogsArgs),
    /// Stop containers: the stop signal, then SIGKILL
    Stop(StopArgs),
    /// Send a signal to containers
    Kill(KillArgs),
    /// Remove containers
    Rm(RmArgs),
    /// Wait until containers stop, then print their exit statuses
    Wait(NamesArgs),
    /// Download an image
    Pull(PullArgs),
    /// List images
    Images(ImagesArgs),
    /// Remove images
    Rmi(RmiArgs),
    /// Print what is known of containers or images, as JSON
    Inspect(NamesArgs),
    /// Look after nacre's own data
    #[command(subcommand)]
    System(SystemCommand),
    /// Tell whether this machine can run micro-VMs, and what to do where it cannot
    Check(CheckArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Remove stopped containers, images without a tag, and layers that no image uses
    Prune(PruneArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExecArgs {
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the process a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Do not wait for the process
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keys that leave the terminal and let the process live on
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: DetachKeys,
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
    /// Give the process every capability
    #[arg(long)]
    pub(crate) privileged: bool,
    /// Name or id of a running container
    pub(crate) container: String,
    /// Program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PsArgs {
    /// Stopped containers too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Ids in full
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// `table`, or `json` for one object a line
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct LogsArgs {
    /// Go on with what is written from now on
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print the time of each line
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) tail: Option<String>,
    /// Name or id of a container
    pub(crate) container: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StopArgs {
    /// Seconds between the stop signal and SIGKILL
    #[arg(
        short = 't',
        long = "time",
        visible_alias = "timeout",
        value_name = "SECONDS",
        default_value_t = 10
    )]
    pub(crate) seconds: u64,
    /// Signal instead of the image's
    #[arg(short, long)]
    pub(crate) signal: Option<String>,
    /// Names or ids
    #[arg(required = true)]
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct KillArgs {
    /// Signal, by name or number
    #[arg(short, long, default_value = "KILL")]
    pub(crate) signal: String,
    /// Names or ids
    #[arg(required = true)]
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RmArgs {
    /// Kill what runs
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or ids
    #[arg(required = true)]
    pub(crate) containers: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct NamesArgs {
    /// Names or ids
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PullArgs {
    /// Speak plain http to this registry (an authority of your own for https: /etc/nacre/certs.d/HOST)
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Platform of a multi-platform image; micro-VMs here run linux/amd64
    #[arg(long, value_name = "OS/ARCH", default_value = "linux/amd64")]
    pub(crate) platform: String,
    /// Print only the image's name
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Name with tag or digest, `oci:DIR:TAG`, `oci-archive:FILE` or `docker-archive:FILE`
    pub(crate) image: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImagesArgs {
    /// Only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Ids in full
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// `table`, or `json` for one object a line
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RmiArgs {
    /// Remove the image though it has several names or a stopped container uses it
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or ids
    #[arg(required = true)]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PruneArgs {
    /// Also images that no container uses
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
