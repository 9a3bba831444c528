//! `start`: binds the socket, forks the server, prints where it listens. A container that joins a pod has no server of its own:
//! the answer is where its sandbox's listens.
//!
//! The fork comes before any thread or runtime. The socket listens already when the address is printed, so that
//! whoever reads it can connect at once; the server takes the connection when it is up.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nacre_protocol::id::ContainerId;
use nacre_sandbox::config::Config;
use nacre_sandbox::plan::MAX_SPEC_BYTES;
use nacre_sandbox::plan::pod::{self, Role};
use nacre_sandbox::record::run_dir;
use serde::Serialize;

use crate::args::Args;
use crate::sys::{self, Fork};
use crate::{log, serve, socket};

/// containerd 1.7 and later tell here that they understand JSON, and the newest version of it.
const MAX_VERSION_ENV: &str = "MAX_SHIM_VERSION";

/// The newest version of the answer that is known here: Task API v3.
const NEWEST_VERSION: u32 = 3;

/// The answer that containerd 1.7 and later read.
#[derive(Debug, Serialize)]
struct Bootstrap<'a> {
    version: u32,
    address: &'a str,
    protocol: &'a str,
}

/// What the server needs to know.
pub(crate) struct Server {
    pub(crate) namespace: ContainerId,
    pub(crate) id: ContainerId,
    pub(crate) run_dir: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) config: Config,
    pub(crate) bundle: PathBuf,
    pub(crate) debug: bool,
}

/// Starts a server in the bundle that is the working directory.
pub(crate) fn start(args: &Args) -> Result<()> {
    sys::close_on_exec();
    let (namespace, id) = (args.namespace()?, args.id()?);
    let (config, run_dir) = (Config::load()?, run_dir()?);
    let bundle = std::env::current_dir().context("cannot find the bundle")?;
    if let Some(sandbox) = sandbox_of(&bundle)? {
        let socket = socket::find(&run_dir, &namespace, &sandbox)?;
        return print_address(&format!("unix://{}", socket.display()));
    }
    let (listener, socket) = socket::listen(&run_dir, &namespace, &id)?;
    let address = format!("unix://{}", socket.display());
    let debug = args.debug;
    let server = Server { namespace, id, run_dir, socket, config, bundle, debug };
    match sys::fork().context("cannot fork")? {
        Fork::Child => std::process::exit(run(server, listener)),
        Fork::Parent => print_address(&address),
    }
}

/// The sandbox that the bundle's container joins, if it does.
fn sandbox_of(bundle: &Path) -> Result<Option<ContainerId>> {
    let config = match File::open(bundle.join("config.json")) {
        // The Create request brings it, or says that it is missing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.context("cannot open config.json")?,
    };
    let mut text = Vec::new();
    config.take(MAX_SPEC_BYTES as u64 + 1).read_to_end(&mut text).context("cannot read config.json")?;
    match pod::role_of(&text)? {
        Role::Member { sandbox } => Ok(Some(sandbox.parse().context("the id of the sandbox is none")?)),
        Role::Alone | Role::Sandbox => Ok(None),
    }
}

fn print_address(address: &str) -> Result<()> {
    write_address(address);
    print!("{}", answer(address, std::env::var(MAX_VERSION_ENV).ok().as_deref()));
    io::stdout().flush().context("cannot print the address")
}

/// For containerd 1.6 and `nacre`, the bare address; the JSON of later ones where they say that they read it.
fn answer(address: &str, max_version: Option<&str>) -> String {
    let Some(newest) = max_version.and_then(|text| text.parse::<u32>().ok()).filter(|newest| *newest >= 2)
    else {
        return address.to_owned();
    };
    let bootstrap = Bootstrap { version: newest.min(NEWEST_VERSION), address, protocol: "ttrpc" };
    serde_json::to_string(&bootstrap).unwrap_or_else(|_| address.to_owned())
}

/// containerd finds a running shim again by this file when it was restarted.
fn write_address(address: &str) {
    if let Err(error) = fs::write("address", address) {
        eprintln!("cannot write the shim's address into its bundle: {error}");
    }
}

/// The server process.
fn run(server: Server, listener: UnixListener) -> i32 {
    if let Err(error) = detach(&server.bundle) {
        eprintln!("{}: {error:#}", crate::args::NAME);
        return 1;
    }
    log::init(server.debug);
    match serve::serve(server, listener) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the shim failed");
            1
        }
    }
}

/// A session of its own, no terminal, and the log that containerd reads as standard error.
fn detach(bundle: &Path) -> Result<()> {
    rustix::process::setsid().context("cannot make a session")?;
    let null = File::options().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
    let log = open_log(&bundle.join("log"));
    sys::replace_stdio(null.as_fd(), log.as_ref().ok().map(AsFd::as_fd)).context("cannot detach")?;
    // One more than containerd's own: of the two, the shim is the one that can be spared.
    if let Ok(text) = fs::read_to_string("/proc/self/oom_score_adj")
        && let Ok(own) = text.trim().parse::<i32>()
    {
        let _ = fs::write("/proc/self/oom_score_adj", (own + 1).min(1000).to_string());
    }
    Ok(())
}

/// containerd's FIFO, opened so that a reader that is not there (yet, or any more) never makes the shim wait; a file
/// where there is none.
fn open_log(path: &Path) -> io::Result<File> {
    let is_fifo = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    if is_fifo {
        return File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    }
    File::options().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_that_say_nothing_get_the_bare_address() {
        assert_eq!(answer("unix:///x", None), "unix:///x");
        assert_eq!(answer("unix:///x", Some("")), "unix:///x");
    }

    #[test]
    fn callers_that_read_json_get_their_version_of_it() {
        let json = r#"{"version":2,"address":"unix:///x","protocol":"ttrpc"}"#;
        assert_eq!(answer("unix:///x", Some("2")), json);
        assert_eq!(answer("unix:///x", Some("9")), json.replace(":2,", ":3,"));
    }
}
