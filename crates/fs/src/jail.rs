//! The walls around the server (B2, F01 to F06 in `docs/threat-model.md`).
//!
//! 1. [`mount_shares`]: a mount namespace with a tmpfs and below [`SHARES`] in it one mount for each share, `nosuid`,
//!    `nodev`, and read-only where asked; beside it a /proc that shows this process alone, for fuse-backend-rs reaches
//!    extended attributes through /proc/self/fd.
//! 2. [`enter`]: that tmpfs, itself read-only, becomes the root; empty network, IPC and UTS namespaces; the
//!    capabilities that file ownership needs and no other; `no_new_privs`; no core dumps.
//! 3. [`restrict_threads`]: the list of system calls, for every thread.
//!
//! Shares that come later are mounted by another process ([`crate::change`]), under the same rules.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::mounts::{TABLE, kernel_tree};
use crate::start::ShareFile;
use crate::sys;

/// Where the tmpfs is mounted until it is the root. Every Linux system has the directory, and only this process's own
/// mount namespace sees the mount. (Not /proc: the file system opens /proc/self/fd before it is jailed.)
const ROOT: &str = "/sys";

/// The directory that is served, once the tmpfs is the root.
pub(crate) const SHARES: &str = "/shares";

/// What creating files for a guest's users needs. No MKNOD (F04), no DAC_READ_SEARCH (open_by_handle_at), no
/// SYS_ADMIN (mounts, trusted.* attributes), no SETFCAP.
const KEPT: [Capability; 6] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
];

/// Most mounts on top of each other that are taken away.
const MAX_STACKED: u32 = 64;

/// Open files of a guest, and inodes that it remembers, are descriptors here: at most so many.
const MAX_FILES: u64 = 65_536;

/// A wall that cannot be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JailError {
    #[error("share {name:?} cannot be mounted")]
    Share { name: String, source: io::Error },
    #[error("the ids of share {name:?} cannot be mapped; its file system may not have id-mapped mounts")]
    IdMap { name: String, source: io::Error },
    #[error("step {step:?} failed")]
    Step { step: &'static str, source: io::Error },
    #[error("capabilities cannot be dropped")]
    Capabilities(#[source] caps::errors::CapsError),
    #[error("the system call list cannot be installed")]
    Seccomp(#[source] seccompiler::Error),
    #[error("the system call list cannot be made")]
    SeccompList(#[source] seccompiler::BackendError),
}

pub(crate) fn step<T>(step: &'static str, result: Result<T, impl Into<io::Error>>) -> Result<T, JailError> {
    result.map_err(|error| JailError::Step { step, source: error.into() })
}

/// Makes the directory that is served and gives its path, in a mount namespace of its own.
pub(crate) fn mount_shares(shares: Vec<ShareFile>) -> Result<PathBuf, JailError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attach_apart(shares)?;
    let proc = Path::new(ROOT).join("proc");
    step("proc", rustix::fs::mkdir(&proc, Mode::from_raw_mode(0o555)))?;
    step("proc", mount(Some("proc"), &proc, Some("proc"), flags | MsFlags::MS_RDONLY, Some("subset=pid")))?;
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    step("read-only root", mount(None::<&str>, ROOT, None::<&str>, read_only, None::<&str>))?;
    Ok(ROOT.into())
}

/// Copies of the shares' mounts, restricted and without what must not be served, attached nowhere: with the name of
/// each, and whether it is a directory. The process is in a mount namespace of its own afterwards.
pub(crate) fn prepare_apart(shares: Vec<ShareFile>) -> Result<Vec<Tree>, JailError> {
    let names: Vec<String> = shares.iter().map(|share| share.name.to_string()).collect();
    let dir = attach_apart(shares)?;
    let take = |name: String| {
        let path = dir.join(&name);
        let failed = |source: io::Error| JailError::Share { name: name.clone(), source };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let flags = flags | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let mount = open_tree(rustix::fs::CWD, &path, flags).map_err(|errno| failed(errno.into()))?;
        let stat = fstat(&mount).map_err(|errno| failed(errno.into()))?;
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Ok(Tree { name, mount, is_dir })
    };
    names.into_iter().map(take).collect()
}

/// Attaches the shares in a mount namespace of this process's own, each to its name below the directory that is
/// returned, on a tmpfs at [`ROOT`].
fn attach_apart(shares: Vec<ShareFile>) -> Result<PathBuf, JailError> {
    // Copies of the mounts must be taken while the descriptors' own namespace is still ours.
    let trees: Result<Vec<_>, _> = shares.into_iter().map(Tree::take).collect();
    let trees = trees?;
    step("unshare", unshare(CloneFlags::CLONE_NEWNS))?;
    step(
        "private mounts",
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>),
    )?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    step("tmpfs", mount(Some("nacre-fs"), ROOT, Some("tmpfs"), flags, Some("mode=755,size=64k")))?;
    let shares = Path::new(ROOT).join(SHARES.trim_start_matches('/'));
    step("shares", rustix::fs::mkdir(&shares, Mode::from_raw_mode(0o755)))?;
    for tree in trees {
        tree.attach(&shares)?;
    }
    remove_kernel_trees(&shares)?;
    Ok(shares)
}

/// Takes every mount of the host's kernel below the shares away. Where others are mounted on top of one, the uppermost goes
/// first, so the table is read again until it has none left.
fn remove_kernel_trees(shares: &Path) -> Result<(), JailError> {
    for _ in 0..MAX_STACKED {
        let table = step("mountinfo", std::fs::read_to_string(TABLE))?;
        let mut found = false;
        for point in table
            .lines()
            .filter_map(kernel_tree)
            .map(|tree| tree.point)
            .filter(|point| point.starts_with(shares))
        {
            found = true;
            match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // It went with one above it.
                Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
                other => step("unmount a kernel tree", other)?,
            }
        }
        if !found {
            return Ok(());
        }
    }
    step("unmount kernel trees", Err(io::Error::from(io::ErrorKind::ResourceBusy)))
}

/// A detached copy of a share's mount.
pub(crate) struct Tree {
    pub(crate) name: String,
    pub(crate) mount: OwnedFd,
    pub(crate) is_dir: bool,
}

impl Tree {
    fn take(share: ShareFile) -> Result<Self, JailError> {
        let name = share.name.to_string();
        let failed = |source: io::Error| JailError::Share { name: name.clone(), source };
        let stat = fstat(&share.file).map_err(|errno| failed(errno.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        let mount = open_tree(&share.file, "", flags).map_err(|errno| failed(errno.into()))?;
        sys::restrict_mount(&mount, share.read_only, share.submounts).map_err(failed)?;
        if let Some(user_namespace) = &share.user_namespace {
            sys::map_ids(&mount, user_namespace)
                .map_err(|source| JailError::IdMap { name: name.clone(), source })?;
        }
        Ok(Self { name, mount, is_dir: kind == FileType::Directory })
    }

    /// Mounts it below `root`, on an entry of its own kind.
    fn attach(self, root: &Path) -> Result<(), JailError> {
        let path = root.join(&self.name);
        let attached = || -> io::Result<()> {
            if self.is_dir {
                rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))?;
            } else {
                rustix::fs::open(
                    &path,
                    OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
                    Mode::from_raw_mode(0o600),
                )?;
            }
            move_mount(&self.mount, "", rustix::fs::CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            Ok(())
        };
        attached().map_err(|source| JailError::Share { name: self.name.clone(), source })
    }
}

/// Makes `root` the root and gives up all that serving does not need.
pub(crate) fn enter(root: &Path) -> Result<(), JailError> {
    let others = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    step("unshare", unshare(others))?;
    step("chdir", nix::unistd::chdir(root))?;
    // Old and new root on one path: the old one is then the upper mount there, and goes (pivot_root(2)).
    step("pivot_root", nix::unistd::pivot_root(".", "."))?;
    step("umount", umount2(".", MntFlags::MNT_DETACH))?;
    step("chdir", nix::unistd::chdir("/"))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    step("core limit", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    let (_, hard) = step("descriptor limit", getrlimit(Resource::RLIMIT_NOFILE))?;
    let files = hard.min(MAX_FILES);
    step("descriptor limit", setrlimit(Resource::RLIMIT_NOFILE, files, files))?;
    // F06: no group of whoever started us comes along.
    step("setgroups", nix::unistd::setgroups(&[]))?;
    // What a guest's user makes is made as that user. Whether they may is the guest's kernel's to say, which knows all their
    // groups; a request names one. So the change of user must not take CAP_DAC_OVERRIDE away.
    step("securebits", set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP))?;
    drop_capabilities()?;
    step("no_new_privs", nix::sys::prctl::set_no_new_privs())?;
    step("dumpable", nix::sys::prctl::set_dumpable(false))
}

fn drop_capabilities() -> Result<(), JailError> {
    let kept: HashSet<Capability> = KEPT.into_iter().collect();
    for cap in caps::read(None, CapSet::Bounding).map_err(JailError::Capabilities)? {
        if !kept.contains(&cap) {
            caps::drop(None, CapSet::Bounding, cap).map_err(JailError::Capabilities)?;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(JailError::Capabilities)?;
    caps::set(None, CapSet::Inheritable, &HashSet::new()).map_err(JailError::Capabilities)?;
    caps::set(None, CapSet::Effective, &kept).map_err(JailError::Capabilities)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(JailError::Capabilities)
}

/// System calls of the server's threads: files beneath descriptors that are open, memory, and the sockets that are
/// open. No socket, connect, execve, mount, open_by_handle_at, ptrace or kill.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_madvise,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setxattr,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Installs the list on every thread; what is not on it fails with EPERM.
pub(crate) fn restrict_threads() -> Result<(), JailError> {
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    let errno = u32::try_from(libc::EPERM).unwrap_or(1);
    let filter =
        SeccompFilter::new(rules, SeccompAction::Errno(errno), SeccompAction::Allow, TargetArch::x86_64)
            .map_err(JailError::SeccompList)?;
    let program: BpfProgram = filter.try_into().map_err(JailError::SeccompList)?;
    seccompiler::apply_filter_all_threads(&program).map_err(JailError::Seccomp)
}
