//! Reading a volume: everything in its directory, bounded, without following a link or leaving its file system.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nacre_protocol::rpc::agent::{Empty, VolumeEntry, volume_entry::Kind};
use nacre_protocol::volumes::{DATA, MAX_BYTES, MAX_ENTRIES, MAX_NAME_BYTES, MAX_PATH};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlinkat, statat,
};
use rustix::io::Errno;

use crate::storage::is_kernel_tree;

/// Deepest directory. A projected volume's items may have paths of their own.
const MAX_DEPTH: usize = 32;

/// Readings of a volume that changes meanwhile.
const MAX_TRIES: u32 = 8;

/// The link that a kubelet makes before it takes the place of [`DATA`]: nothing that a container should see.
const DATA_NEXT: &str = "..data_tmp";

/// A volume's directory.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
}

impl Tree {
    pub(super) fn open(source: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(source, flags, Mode::empty())?;
        if is_kernel_tree(rustix::fs::fstatfs(&root)?.f_type) {
            return Err(unsupported());
        }
        Ok(Self { root })
    }

    /// All entries, each directory before what is in it. `visit` is told of each directory before it is read.
    pub(super) fn read(
        &self,
        visit: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<Vec<VolumeEntry>> {
        let mut last = None;
        for _ in 0..MAX_TRIES {
            let before = self.data();
            let mut reading = Reading { entries: Vec::new(), bytes: 0, names: 0, visit: &mut *visit };
            match reading.whole(&self.root) {
                // Of one state, not half of it of the next.
                Ok(()) if before == self.data() => return Ok(reading.entries),
                Ok(()) => {}
                // Something went away while it was looked at.
                Err(error) if is_gone(&error) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other("it does not stop changing")))
    }

    fn data(&self) -> Option<Vec<u8>> {
        readlinkat(&self.root, DATA, Vec::new()).ok().map(|target| target.into_bytes())
    }
}

fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::LOOP, Errno::NOTDIR, Errno::INVAL, Errno::AGAIN];
    error.raw_os_error().is_some_and(|number| gone.iter().any(|errno| errno.raw_os_error() == number))
}

/// It cannot cross by value.
fn unsupported() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

struct Reading<'a> {
    entries: Vec<VolumeEntry>,
    bytes: usize,
    names: usize,
    visit: &'a mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>,
}

impl Reading<'_> {
    fn whole(&mut self, root: &OwnedFd) -> io::Result<()> {
        self.add(String::new(), &fstat(root)?, Kind::Directory(Empty::new()))?;
        let again = open_beneath(root, c".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.directory(&again, "", 0)
    }

    fn directory(&mut self, directory: &OwnedFd, path: &str, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(unsupported());
        }
        (self.visit)(directory.as_fd())?;
        let mut names = Vec::new();
        for entry in Dir::read_from(directory)? {
            let name = entry?.file_name().to_owned();
            if [c".", c".."].contains(&name.as_c_str())
                || depth == 0 && name.to_bytes() == DATA_NEXT.as_bytes()
            {
                continue;
            }
            names.push(name);
            if names.len() > MAX_ENTRIES {
                return Err(unsupported());
            }
        }
        // In an order that is the same each time.
        names.sort();
        names.iter().try_for_each(|name| self.entry(directory, name, path, depth))
    }

    fn entry(&mut self, parent: &OwnedFd, name: &CStr, path: &str, depth: usize) -> io::Result<()> {
        let text = name.to_str().map_err(|_| unsupported())?;
        let path = if path.is_empty() { text.to_owned() } else { format!("{path}/{text}") };
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let directory = open_beneath(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
                self.add(path.clone(), &fstat(&directory)?, Kind::Directory(Empty::new()))?;
                self.directory(&directory, &path, depth + 1)
            }
            FileType::RegularFile => {
                let file = open_beneath(parent, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
                let stat = fstat(&file)?;
                let content = self.content(File::from(file), &stat)?;
                self.add(path, &stat, Kind::File(content))
            }
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new())?;
                let target = target.into_string().map_err(|_| unsupported())?;
                self.add(path, &stat, Kind::Link(target))
            }
            _ => Err(unsupported()),
        }
    }

    fn content(&mut self, file: File, stat: &Stat) -> io::Result<Vec<u8>> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(unsupported());
        }
        let room = MAX_BYTES - self.bytes;
        let mut content = Vec::new();
        file.take(room as u64 + 1).read_to_end(&mut content)?;
        if content.len() > room {
            return Err(unsupported());
        }
        self.bytes += content.len();
        Ok(content)
    }

    fn add(&mut self, path: String, stat: &Stat, kind: Kind) -> io::Result<()> {
        let target = if let Kind::Link(target) = &kind { target.len() } else { 0 };
        self.names += path.len() + target;
        if self.entries.len() >= MAX_ENTRIES
            || self.names > MAX_NAME_BYTES
            || path.len() > MAX_PATH
            || target > MAX_PATH
        {
            return Err(unsupported());
        }
        let mode = stat.st_mode & 0o7777;
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        self.entries.push(VolumeEntry { path, mode, uid, gid, kind: Some(kind), ..Default::default() });
        Ok(())
    }
}

/// One name in a directory: no link, and nothing that is mounted there.
fn open_beneath(directory: &OwnedFd, name: &CStr, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    match openat2(directory, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Err(Errno::XDEV) => Err(unsupported()),
        other => Ok(other?),
    }
}
