//! Unix sockets that stand in for those of the host: a file to bind into containers, and a listener whose clients the host
//! fetches by tunnels ([`crate::tunnel`]). A socket's file that crosses by virtio-fs is the host's kernel's: no guest can
//! connect to it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nacre_protocol::files::FileName;
use nacre_protocol::ports::SHARES_DIR;
use rustix::fs::{Mode, OFlags, chmod, chown, mkdir, open};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::CreateError;
use super::create::clone_tree;

/// Most sockets of a guest.
const MAX_SOCKETS: usize = 64;

/// A socket to make.
#[derive(Debug, Clone)]
pub struct SocketFile {
    /// Names it in bind sources.
    pub name: FileName,
    /// Names it in tunnels.
    pub number: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// All sockets of the guest.
#[derive(Debug)]
pub struct Sockets {
    dir: PathBuf,
    sockets: Mutex<BTreeMap<String, (u32, Arc<UnixListener>)>>,
}

impl Sockets {
    /// Their files will be in `dir`, which the first one makes.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, sockets: Mutex::default() }
    }

    /// Makes a socket that listens.
    ///
    /// # Errors
    /// `AlreadyExists`; `QuotaExceeded` where there are too many; what the kernel says.
    pub fn add(&self, wanted: &SocketFile) -> io::Result<()> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if sockets.len() >= MAX_SOCKETS {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let same = |(name, (number, _)): (&String, &(u32, _))| {
            name == wanted.name.as_str() || *number == wanted.number
        };
        if sockets.iter().any(same) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        match mkdir(&self.dir, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let path = self.dir.join(wanted.name.as_str());
        let listener = UnixListener::bind(&path)?;
        let made = listener.set_nonblocking(true).and_then(|()| {
            chown(&path, Some(Uid::from_raw(wanted.uid)), Some(Gid::from_raw(wanted.gid)))?;
            Ok(chmod(&path, Mode::from_raw_mode(wanted.mode))?)
        });
        if made.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        made?;
        sockets.insert(wanted.name.to_string(), (wanted.number, Arc::new(listener)));
        Ok(())
    }

    /// Closes a socket, where there is one of this name.
    pub fn remove(&self, name: &FileName) {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if sockets.remove(name.as_str()).is_some() {
            let _ = std::fs::remove_file(self.dir.join(name.as_str()));
        }
    }

    /// The listener of a number.
    pub(crate) fn listener(&self, number: u32) -> Option<Arc<UnixListener>> {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.values().find(|(found, _)| *found == number).map(|(_, listener)| Arc::clone(listener))
    }

    /// A copy of the mount at the socket that a bind source names; none: it names no socket.
    pub(super) fn open(&self, source: &str) -> Option<Result<OwnedFd, CreateError>> {
        let name = Path::new(source).strip_prefix(SHARES_DIR).ok()?.to_str()?;
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.get(name)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copied =
            open(self.dir.join(name), flags, Mode::empty()).and_then(|file| clone_tree(&file, false));
        let path = source.to_owned();
        Some(copied.map_err(|source| CreateError::Source { what: "socket", path, source }))
    }
}
