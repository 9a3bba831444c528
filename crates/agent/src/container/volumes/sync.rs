//! Making a volume what the host says, in a kubelet's order: new directories and files, the exchange of `..data`, other links,
//! and at last what is gone (Kubernetes, `pkg/volume/util/atomic_writer.go`, tells the order and why).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use nacre_protocol::volumes::DATA;
use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, chownat, fchmod, fchown, mkdirat, openat2, renameat, symlinkat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::entries::{Kind, name, parent};
use super::{Volume, VolumeContent, VolumeEntry, VolumeError, failed};

/// Ending of a link's name until it takes the place of the one before, as a kubelet has it.
const NEXT: &str = "_tmp";

/// Makes the volume hold these entries, which were checked.
pub(super) fn apply(volume: &mut Volume, entries: &[VolumeEntry]) -> Result<(), VolumeError> {
    let (links, others): (Vec<_>, Vec<_>) =
        entries.iter().partition(|entry| matches!(entry.content, VolumeContent::Link(_)));
    for entry in others {
        volume.place(entry)?;
    }
    let (data, links): (Vec<_>, Vec<_>) = links.into_iter().partition(|entry| name(&entry.path) == DATA);
    for entry in data.into_iter().chain(links) {
        volume.place(entry)?;
    }
    let gone = |path: &&String| !entries.iter().any(|entry| entry.path == **path);
    let gone: Vec<String> = volume.known.keys().filter(gone).cloned().collect();
    // What is in a directory comes behind it.
    gone.iter().rev().try_for_each(|path| volume.remove(path))
}

impl Volume {
    fn place(&mut self, entry: &VolumeEntry) -> Result<(), VolumeError> {
        let path = entry.path.as_str();
        let wanted = entry.known();
        let old = self.known.get(path).cloned();
        let same_kind = |old: &Kind| std::mem::discriminant(old) == std::mem::discriminant(&wanted.kind);
        if old.as_ref().is_some_and(|old| !same_kind(&old.kind)) {
            self.remove_tree(path)?;
        }
        let old = old.filter(|old| same_kind(&old.kind));
        match &entry.content {
            VolumeContent::Directory => self.directory(entry, old.is_some()),
            VolumeContent::File(content) => self.file(entry, content, old.is_some()),
            VolumeContent::Link(_) if old.as_ref() == Some(&wanted) => Ok(()),
            VolumeContent::Link(target) => self.link(entry, target, old.is_some()),
        }
        .map_err(failed("make", path))?;
        self.known.insert(path.to_owned(), wanted);
        Ok(())
    }

    /// The directory that a path of the volume is in. No link leads there, whatever a container has put in its place.
    fn parent(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        self.open(parent(path), OFlags::PATH | OFlags::DIRECTORY)
    }

    fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    fn directory(&self, entry: &VolumeEntry, is_there: bool) -> rustix::io::Result<()> {
        let is_root = entry.path.is_empty();
        if !is_there && !is_root {
            mkdirat(&self.parent(&entry.path)?, name(&entry.path), Mode::RWXU)?;
        }
        if is_there && self.known.get(&entry.path) == Some(&entry.known()) {
            return Ok(());
        }
        own(&self.open(&entry.path, OFlags::RDONLY | OFlags::DIRECTORY)?, entry)
    }

    fn file(&self, entry: &VolumeEntry, content: &[u8], is_there: bool) -> rustix::io::Result<()> {
        if is_there {
            if self.holds(&entry.path, content)? {
                if self.known.get(&entry.path) == Some(&entry.known()) {
                    return Ok(());
                }
                return own(&self.open(&entry.path, OFlags::RDONLY | OFlags::NONBLOCK)?, entry);
            }
            let file = self.open(&entry.path, OFlags::WRONLY | OFlags::TRUNC | OFlags::NONBLOCK)?;
            own(&file, entry)?;
            return write(file, content);
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = self.parent(&entry.path)?;
        let file = rustix::fs::openat(&parent, name(&entry.path), flags, Mode::RUSR | Mode::WUSR)?;
        own(&file, entry)?;
        write(file, content)
    }

    fn holds(&self, path: &str, content: &[u8]) -> rustix::io::Result<bool> {
        let file = File::from(self.open(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
        let mut found = Vec::with_capacity(content.len());
        let limit = u64::try_from(content.len()).unwrap_or(u64::MAX).saturating_add(1);
        file.take(limit).read_to_end(&mut found).map_err(errno)?;
        Ok(found == content)
    }

    fn link(&self, entry: &VolumeEntry, target: &str, is_there: bool) -> rustix::io::Result<()> {
        let parent = self.parent(&entry.path)?;
        let name = name(&entry.path);
        let made = if is_there { format!("{name}{NEXT}") } else { name.to_owned() };
        match symlinkat(target, &parent, made.as_str()) {
            // Left by a change that failed.
            Err(Errno::EXIST) if is_there => {
                unlinkat(&parent, made.as_str(), AtFlags::empty())?;
                symlinkat(target, &parent, made.as_str())?;
            }
            other => other?,
        }
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        chownat(&parent, made.as_str(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if is_there { renameat(&parent, made.as_str(), &parent, name) } else { Ok(()) }
    }

    fn remove_tree(&mut self, path: &str) -> Result<(), VolumeError> {
        let below = format!("{path}/");
        let inside = |known: &&String| **known == path || known.starts_with(&below);
        let all: Vec<String> = self.known.keys().filter(inside).cloned().collect();
        all.iter().rev().try_for_each(|path| self.remove(path))
    }

    fn remove(&mut self, path: &str) -> Result<(), VolumeError> {
        let is_directory = self.known.get(path).is_some_and(|known| known.kind == Kind::Directory);
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match self.parent(path).and_then(|parent| unlinkat(&parent, name(path), flags)) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(source) => return Err(failed("remove", path)(source)),
        }
        self.known.remove(path);
        Ok(())
    }
}

/// Owner first: a change of owner takes set-id bits away.
fn own(file: &OwnedFd, entry: &VolumeEntry) -> rustix::io::Result<()> {
    fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
    fchmod(file, Mode::from_raw_mode(entry.mode))
}

fn write(file: OwnedFd, content: &[u8]) -> rustix::io::Result<()> {
    File::from(file).write_all(content).map_err(errno)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
