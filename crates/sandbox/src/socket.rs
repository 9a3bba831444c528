//! Unix sockets by path, whatever the path's length: `sun_path` holds 107 bytes, so the address goes through the
//! descriptor of the directory.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Connects to the socket of this path.
///
/// # Errors
/// What the kernel says.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_dir, short) = shorten(path)?;
    UnixStream::connect(short)
}

/// Binds a listening socket to this path.
///
/// # Errors
/// What the kernel says.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (_dir, short) = shorten(path)?;
    UnixListener::bind(short)
}

/// The directory, open, and the path through it.
fn shorten(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((dir, short))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_longer_than_an_address_works() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("n".repeat(76)).join("i".repeat(76));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("vsock");
        let _listener = listen(&path).unwrap();
        assert!(connect(&path).is_ok());
    }
}
