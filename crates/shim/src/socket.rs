//! The socket of the Task API: a path of a fixed length in a directory of our own, never an abstract name (H01).

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nacre_protocol::id::ContainerId;
use nacre_sandbox::record::{ProcessRef, RecordError, private_dir};
use rustix::fs::Mode;
use sha2::{Digest, Sha256};

/// Bytes of the hash that name a socket.
const NAME_BYTES: usize = 16;

/// A socket that cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error(transparent)]
    Dir(#[from] RecordError),
    #[error("a shim of {id} in namespace {namespace} is running")]
    InUse { namespace: ContainerId, id: ContainerId },
    #[error("no shim of the sandbox {id} is running in namespace {namespace}")]
    NotRunning { namespace: ContainerId, id: ContainerId },
    #[error("cannot listen on {path}")]
    Listen { path: PathBuf, source: io::Error },
}

/// Path of a sandbox's socket.
pub(crate) fn path(run_dir: &Path, namespace: &ContainerId, id: &ContainerId) -> PathBuf {
    let hash = Sha256::digest(format!("{namespace}/{id}"));
    let name: String = hash.iter().take(NAME_BYTES).map(|byte| format!("{byte:02x}")).collect();
    run_dir.join("s").join(name)
}

/// The file beside a socket that tells which process serves it.
fn owner_file(socket: &Path) -> PathBuf {
    socket.with_extension("shim")
}

/// Notes that this process serves the socket.
pub(crate) fn own(socket: &Path) -> io::Result<()> {
    let text = serde_json::to_vec(&ProcessRef::own())?;
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(owner_file(socket))?
        .write_all(&text)
}

/// Removes the socket and the note of who serves it.
pub(crate) fn remove(socket: &Path) {
    let _ = std::fs::remove_file(socket);
    let _ = std::fs::remove_file(owner_file(socket));
}

/// Ends the process that serves the socket, if there still is one, and removes both.
pub(crate) fn end_owner(socket: &Path) {
    let noted = std::fs::read(owner_file(socket)).ok();
    if let Some(owner) = noted.and_then(|text| serde_json::from_slice::<ProcessRef>(&text).ok()) {
        owner.kill();
    }
    remove(socket);
}

/// The socket of a sandbox whose shim is running.
pub(crate) fn find(
    run_dir: &Path,
    namespace: &ContainerId,
    id: &ContainerId,
) -> Result<PathBuf, SocketError> {
    let path = path(run_dir, namespace, id);
    match UnixStream::connect(&path) {
        Ok(_) => Ok(path),
        Err(_) => Err(SocketError::NotRunning { namespace: namespace.clone(), id: id.clone() }),
    }
}

/// Binds the socket; one that a dead shim left is replaced.
pub(crate) fn listen(
    run_dir: &Path,
    namespace: &ContainerId,
    id: &ContainerId,
) -> Result<(UnixListener, PathBuf), SocketError> {
    let path = path(run_dir, namespace, id);
    private_dir(run_dir)?;
    private_dir(&run_dir.join("s"))?;
    let failed = |source| SocketError::Listen { path: path.clone(), source };
    // This process has one thread: nobody else's files are made meanwhile.
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let mut bound = UnixListener::bind(&path);
    if bound.as_ref().is_err_and(|error| error.kind() == ErrorKind::AddrInUse) {
        if UnixStream::connect(&path).is_ok() {
            rustix::process::umask(umask);
            return Err(SocketError::InUse { namespace: namespace.clone(), id: id.clone() });
        }
        bound = std::fs::remove_file(&path).and_then(|()| UnixListener::bind(&path));
    }
    rustix::process::umask(umask);
    Ok((bound.map_err(failed)?, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn names() -> (ContainerId, ContainerId) {
        ("default".parse().unwrap(), "web".parse().unwrap())
    }

    #[test]
    fn h01_socket_is_a_path_for_its_owner_alone() {
        let run = tempfile::tempdir().unwrap();
        let (namespace, id) = names();
        let (listener, path) = listen(run.path(), &namespace, &id).unwrap();
        assert!(listener.local_addr().unwrap().as_pathname().is_some());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn socket_of_a_dead_shim_is_replaced_and_of_a_living_one_not() {
        let run = tempfile::tempdir().unwrap();
        let (namespace, id) = names();
        let (first, _) = listen(run.path(), &namespace, &id).unwrap();
        assert!(matches!(listen(run.path(), &namespace, &id), Err(SocketError::InUse { .. })));
        drop(first);
        assert!(listen(run.path(), &namespace, &id).is_ok());
    }

    #[test]
    fn longest_names_fit_into_an_address() {
        let long: ContainerId = "x".repeat(76).parse().unwrap();
        assert!(path(Path::new("/run/nacre"), &long, &long).as_os_str().len() < 107);
    }
}
