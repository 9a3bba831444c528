//! The file system as a guest may use it: every request's arguments are checked before fuse-backend-rs sees them.
//!
//! Owns what is allowed (F01, F02, F04, F08 in `docs/threat-model.md`) and what is negotiated with FUSE_INIT. The walls
//! of `jail` stand behind it and hold on their own; this one gives plain answers, and bounds what a request may cost.
//! A method that the trait has and this file does not answers `ENOSYS`: locks, ioctl, DAX mappings, poll.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::api::server::MAX_BUFFER_SIZE;
use fuse_backend_rs::passthrough::PassthroughFs;

use crate::mounts::Devices;
use crate::versions::Versions;

/// What is negotiated beside what the inner file system asks for. Without `BIG_WRITES` and `MAX_PAGES` Linux sends one
/// page with each write. `AUTO_INVAL_DATA` drops cached pages when the host changes a file.
const WANTED: FsOptions = FsOptions::ASYNC_READ
    .union(FsOptions::ATOMIC_O_TRUNC)
    .union(FsOptions::BIG_WRITES)
    .union(FsOptions::AUTO_INVAL_DATA)
    .union(FsOptions::ASYNC_DIO)
    .union(FsOptions::PARALLEL_DIROPS)
    .union(FsOptions::MAX_PAGES);

/// What is taken over from the inner file system's own wishes. Not the writeback cache: two guests, or a guest and the
/// host, may share a directory. `HANDLE_KILLPRIV_V2` saves Linux a request for `security.capability` before each write.
const OFFERED: FsOptions =
    FsOptions::DO_READDIRPLUS.union(FsOptions::READDIRPLUS_AUTO).union(FsOptions::HANDLE_KILLPRIV_V2);

/// Flags of open(2) that reach the host. Not among them: `O_DIRECT` (the guest has bypassed its own cache, and the
/// host's stays shared), `O_ASYNC`, `O_NOATIME`, `O_PATH`, `O_TMPFILE`, `O_CREAT`.
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_TRUNC
    | libc::O_NONBLOCK
    | libc::O_DSYNC
    | libc::O_SYNC
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_EXCL;

/// Longest name, value and list of extended attributes (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`, `XATTR_LIST_MAX` of Linux).
const MAX_XATTR: u32 = 65_536;

/// Longest name of a file.
const MAX_NAME: usize = 255;

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// The mode that a new file begins with. F06: a user makes none that is set-gid by the group of its directory; the host's
/// kernel does not see to it, since CAP_FSETID stays with the server. Who owns a file can still change its mode.
fn first_mode(ctx: &Context, mode: u32) -> u32 {
    if ctx.uid == 0 { mode } else { mode & !libc::S_ISGID }
}

/// A name is one component of a path, and none that leads back up.
fn check_name(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(errno(libc::EINVAL));
    }
    if name.len() > MAX_NAME { Err(errno(libc::ENAMETOOLONG)) } else { Ok(()) }
}

/// A guest's users may set attributes of their own and ACLs. `security.*` and `trusted.*` are the host's.
fn check_xattr_change(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    let is_acl = name == b"system.posix_acl_access" || name == b"system.posix_acl_default";
    if is_acl || name.starts_with(b"user.") { Ok(()) } else { Err(errno(libc::EPERM)) }
}

/// Reads, writes and listings move at most what was negotiated.
fn check_size(size: u32) -> io::Result<()> {
    if size > MAX_BUFFER_SIZE { Err(errno(libc::EINVAL)) } else { Ok(()) }
}

fn open_flags(flags: u32) -> u32 {
    flags & OPEN_FLAGS.unsigned_abs()
}

/// The guarded file system.
pub(crate) struct GuardedFs {
    inner: PassthroughFs,
    devices: Devices,
    versions: Versions,
}

impl GuardedFs {
    pub(crate) fn new(inner: PassthroughFs) -> Self {
        Self { inner, devices: Devices::default(), versions: Versions::new() }
    }
}

impl GuardedFs {
    /// Whether a file of a root file system is as it was at its last open. Other files may have a writer on the host whose changes show
    /// in no time of theirs: one that has mapped them, or a file system that keeps its times elsewhere.
    fn is_unchanged(&self, ctx: &Context, inode: u64, handle: Option<u64>) -> bool {
        // After the open: a change from here on shows at the next one.
        let Ok((stat, _)) = self.inner.getattr(ctx, inode, handle) else { return false };
        self.devices.is_overlay(stat.st_dev).unwrap_or(false) && self.versions.note(inode, &stat)
    }
}

impl FileSystem for GuardedFs {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        Ok(self.inner.init(capable)? & OFFERED | WANTED)
    }

    fn destroy(&self) {
        self.inner.destroy();
    }

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        let entry = self.inner.lookup(ctx, parent, name)?;
        let allowed = self.devices.is_kernels(entry.attr.st_dev).and_then(|is_kernels| match is_kernels {
            true => Err(errno(libc::EACCES)),
            false => Ok(entry),
        });
        allowed.inspect_err(|_| self.inner.forget(ctx, entry.inode, 1))
    }

    fn forget(&self, ctx: &Context, inode: u64, count: u64) {
        self.inner.forget(ctx, inode, count);
    }

    fn batch_forget(&self, ctx: &Context, requests: Vec<(u64, u64)>) {
        self.inner.batch_forget(ctx, requests);
    }

    fn getattr(&self, ctx: &Context, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)> {
        self.inner.getattr(ctx, inode, handle)
    }

    fn setattr(
        &self,
        ctx: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.inner.setattr(ctx, inode, attr, handle, valid)
    }

    fn readlink(&self, ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.inner.readlink(ctx, inode)
    }

    fn symlink(&self, ctx: &Context, linkname: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        self.inner.symlink(ctx, linkname, parent, name)
    }

    fn mknod(
        &self,
        ctx: &Context,
        inode: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        check_name(name)?;
        match mode & libc::S_IFMT {
            0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => {
                self.inner.mknod(ctx, inode, name, first_mode(ctx, mode), rdev, umask)
            }
            _ => Err(errno(libc::EPERM)),
        }
    }

    fn mkdir(&self, ctx: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        check_name(name)?;
        self.inner.mkdir(ctx, parent, name, mode, umask)
    }

    fn unlink(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        self.inner.unlink(ctx, parent, name)
    }

    fn rmdir(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        self.inner.rmdir(ctx, parent, name)
    }

    fn rename(
        &self,
        ctx: &Context,
        olddir: u64,
        oldname: &CStr,
        newdir: u64,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        check_name(oldname)?;
        check_name(newname)?;
        // A whiteout is a device node.
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(errno(libc::EINVAL));
        }
        self.inner.rename(ctx, olddir, oldname, newdir, newname, flags)
    }

    fn link(&self, ctx: &Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        check_name(newname)?;
        self.inner.link(ctx, inode, newparent, newname)
    }

    fn open(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let flags = open_flags(flags);
        let (handle, mut options, passthrough) = self.inner.open(ctx, inode, flags, fuse_flags)?;
        let unchanged = flags & libc::O_TRUNC.unsigned_abs() == 0 && self.is_unchanged(ctx, inode, handle);
        options.set(OpenOptions::KEEP_CACHE, unchanged);
        Ok((handle, options, passthrough))
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        check_name(name)?;
        let (flags, mode) = (open_flags(args.flags), first_mode(ctx, args.mode));
        self.inner.create(ctx, parent, name, CreateIn { flags, mode, ..args })
    }

    fn read(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        check_size(size)?;
        self.inner.read(ctx, inode, handle, w, size, offset, lock_owner, open_flags(flags))
    }

    fn write(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        check_size(size)?;
        let flags = open_flags(flags);
        self.inner.write(ctx, inode, handle, r, size, offset, lock_owner, delayed_write, flags, fuse_flags)
    }

    fn flush(&self, ctx: &Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()> {
        self.inner.flush(ctx, inode, handle, lock_owner)
    }

    fn fsync(&self, ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.inner.fsync(ctx, inode, datasync, handle)
    }

    fn fallocate(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.inner.fallocate(ctx, inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.inner.release(ctx, inode, flags, handle, flush, flock_release, lock_owner)
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<statvfs64> {
        self.inner.statfs(ctx, inode)
    }

    fn setxattr(&self, ctx: &Context, inode: u64, name: &CStr, value: &[u8], flags: u32) -> io::Result<()> {
        check_xattr_change(name)?;
        self.inner.setxattr(ctx, inode, name, value, flags)
    }

    fn getxattr(&self, ctx: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        self.inner.getxattr(ctx, inode, name, size.min(MAX_XATTR))
    }

    fn listxattr(&self, ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        self.inner.listxattr(ctx, inode, size.min(MAX_XATTR))
    }

    fn removexattr(&self, ctx: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        check_xattr_change(name)?;
        self.inner.removexattr(ctx, inode, name)
    }

    fn opendir(&self, ctx: &Context, inode: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        self.inner.opendir(ctx, inode, open_flags(flags))
    }

    fn readdir(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        check_size(size)?;
        self.inner.readdir(ctx, inode, handle, size, offset, add_entry)
    }

    fn readdirplus(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        check_size(size)?;
        self.inner.readdirplus(ctx, inode, handle, size, offset, &mut |name, entry| {
            // What cannot be told is not told either.
            if !self.devices.is_kernels(entry.attr.st_dev).unwrap_or(true) {
                return add_entry(name, entry);
            }
            // The name alone: a guest looks it up where it wants more, and is refused.
            let added = add_entry(name, Entry { inode: 0, ..entry })?;
            if added > 0 {
                self.inner.forget(ctx, entry.inode, 1);
            }
            Ok(added)
        })
    }

    fn fsyncdir(&self, ctx: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.inner.fsyncdir(ctx, inode, datasync, handle)
    }

    fn releasedir(&self, ctx: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.inner.releasedir(ctx, inode, flags, handle)
    }

    fn access(&self, ctx: &Context, inode: u64, mask: u32) -> io::Result<()> {
        self.inner.access(ctx, inode, mask)
    }

    fn lseek(&self, ctx: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        self.inner.lseek(ctx, inode, handle, offset, whence)
    }
}
