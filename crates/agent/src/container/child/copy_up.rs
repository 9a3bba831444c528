//! `tmpcopyup`: what the image has at a tmpfs's mount point is copied into it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, chownat, fchmod, fchown, mkdirat, mknodat, openat,
    readlinkat, statat, symlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::error::StepError;
use super::root::{Links, Root};

/// Bounds for a hostile image; the tmpfs's own size bounds the bytes.
const MAX_DEPTH: usize = 64;
const MAX_ENTRIES: usize = 65_536;

/// Copies the directory `path` of the image into the detached tmpfs `mount`: files, directories, links and fifos
/// with mode and owner.
pub(super) fn copy(root: &Root, path: &str, links: Links, mount: &OwnedFd) -> Result<(), StepError> {
    let from = match root.open(path, OFlags::RDONLY | OFlags::DIRECTORY, links) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(StepError::path("open", path))?,
    };
    let mut left = MAX_ENTRIES;
    copy_dir(from.as_fd(), mount.as_fd(), MAX_DEPTH, &mut left)
        .map_err(StepError::path("copy into tmpfs", path))
}

fn copy_dir(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    depth: usize,
    left: &mut usize,
) -> rustix::io::Result<()> {
    let Some(depth) = depth.checked_sub(1) else { return Err(Errno::LOOP) };
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        *left = left.checked_sub(1).ok_or(Errno::FBIG)?;
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let child = openat(to, name, flags, Mode::empty())?;
                copy_dir(openat(from, name, flags, Mode::empty())?.as_fd(), child.as_fd(), depth, left)?;
                own(&child, &stat)?;
            }
            FileType::RegularFile => copy_file(from, to, name, &stat)?,
            FileType::Symlink => {
                symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
                let (uid, gid) = ids(&stat);
                chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            FileType::Fifo => mknodat(to, name, FileType::Fifo, mode, 0)?,
            // Devices would need mknod's rules, sockets have no life of their own.
            _ => {}
        }
    }
    Ok(())
}

fn copy_file(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    stat: &Stat,
) -> rustix::io::Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let write = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut source = File::from(openat(from, name, read, Mode::empty())?);
    let mut target = File::from(openat(to, name, write, Mode::RUSR | Mode::WUSR)?);
    io::copy(&mut source, &mut target).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    own(&target.into(), stat)
}

fn own(file: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
    let (uid, gid) = ids(stat);
    fchown(file, uid, gid)?;
    fchmod(file, Mode::from_raw_mode(stat.st_mode & 0o7777))
}

fn ids(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}
