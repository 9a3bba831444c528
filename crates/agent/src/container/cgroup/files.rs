//! Files and directories of a cgroup, each named below an open directory: no path is walked twice.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use super::{CgroupError, MAX_FILE, MAX_NESTED, SETTLE};

pub(super) fn dir_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW
}

pub(super) fn file_error(action: &'static str, file: &str) -> impl FnOnce(Errno) -> CgroupError {
    let file = file.to_owned();
    move |source| CgroupError::File { action, file, source }
}

pub(super) fn ensure_dir(parent: &OwnedFd, name: &str) -> Result<(), CgroupError> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(file_error("make", name)(error)),
    }
}

pub(super) fn child_dirs(dir: &OwnedFd) -> Result<Vec<String>, CgroupError> {
    let entries = match Dir::read_from(dir) {
        Ok(entries) => entries,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(Vec::new()),
        Err(error) => return Err(file_error("list", "directory")(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(file_error("list", "directory"))?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            names.push(name.into_owned());
        }
        if names.len() > MAX_NESTED {
            return Err(CgroupError::TooMany(MAX_NESTED, "cgroups"));
        }
    }
    Ok(names)
}

/// rmdir of an empty cgroup. The last task's exit may still hold it for a moment after `populated 0`.
pub(super) fn remove_dir(parent: &OwnedFd, name: &str) -> Result<(), CgroupError> {
    let deadline = Instant::now() + SETTLE;
    loop {
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(file_error("remove", name)(error)),
        }
    }
}

pub(super) fn read_at(dir: &OwnedFd, file: &str) -> rustix::io::Result<String> {
    let fd = openat(dir, file, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 8192];
    loop {
        match rustix::io::read(&fd, &mut chunk) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if bytes.len() > MAX_FILE {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(super) fn write_at(dir: &OwnedFd, file: &str, value: &str) -> Result<(), CgroupError> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = match openat(dir, file, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Err(CgroupError::NoSuchFile(file.to_owned())),
        other => other.map_err(file_error("open", file))?,
    };
    match rustix::io::write(&fd, value.as_bytes()) {
        Ok(_) => Ok(()),
        Err(source @ (Errno::INVAL | Errno::RANGE | Errno::BUSY | Errno::NODEV | Errno::OPNOTSUPP))
            if !file.starts_with("cgroup.") =>
        {
            Err(CgroupError::Value { file: file.to_owned(), value: value.to_owned(), source })
        }
        // Removed since it was opened.
        Err(Errno::NODEV) => Err(CgroupError::NoSuchFile(file.to_owned())),
        Err(error) => Err(file_error("write", file)(error)),
    }
}

/// Value of `name value` in a flat-keyed file.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    field_text(text, name)?.parse().ok()
}

pub(super) fn field_text<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}
