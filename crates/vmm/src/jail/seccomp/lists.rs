//! The lists themselves. A call stands in a list because the reason beside it was seen.

use super::{Allowed, ThreadKind, When};

const fn always(number: libc::c_long) -> Allowed {
    Allowed { number: number as u32, when: &[] }
}

const fn when(number: libc::c_long, when: &'static [When]) -> Allowed {
    Allowed { number: number as u32, when }
}

/// The lists whose union a kind of thread may use.
pub(super) fn of(kind: ThreadKind) -> &'static [&'static [Allowed]] {
    match kind {
        ThreadKind::Vcpu => &[COMMON, VCPU],
        // It makes hot-plugged devices, so it sets taps up.
        ThreadKind::Control => &[COMMON, SOCKETS, CONTROL, NET],
        ThreadKind::Devices => {
            &[COMMON, SPAWN, SOCKETS, CONTROL, VCPU, POLL, BLOCK, NET, VSOCK, RNG, BALLOON, FS, TIMER]
        }
        ThreadKind::Block => &[COMMON, POLL, BLOCK],
        ThreadKind::Net => &[COMMON, POLL, NET],
        ThreadKind::Vsock => &[COMMON, POLL, SOCKETS, VSOCK, TIMER],
        ThreadKind::Rng => &[COMMON, POLL, RNG, TIMER],
        ThreadKind::Balloon => &[COMMON, POLL, BALLOON, TIMER],
        ThreadKind::Console => &[COMMON, POLL, TIMER],
        ThreadKind::Fs => &[COMMON, POLL, SOCKETS, FS],
    }
}

const PROT_EXEC: u32 = libc::PROT_EXEC as u32;

/// What the C library's allocator and threads, and Rust's locks and channels, need anywhere.
const COMMON: &[Allowed] = &[
    always(libc::SYS_read),
    always(libc::SYS_write),
    always(libc::SYS_readv),
    always(libc::SYS_writev),
    always(libc::SYS_close),
    // Debug builds look whether a descriptor is open before they close it.
    when(libc::SYS_fcntl, &[When::Is(1, libc::F_GETFD as u32)]),
    always(libc::SYS_futex),
    // The heap grows and shrinks; nothing becomes executable.
    always(libc::SYS_brk),
    when(libc::SYS_mmap, &[When::Lacks(2, PROT_EXEC)]),
    when(libc::SYS_mprotect, &[When::Lacks(2, PROT_EXEC)]),
    always(libc::SYS_mremap),
    always(libc::SYS_munmap),
    always(libc::SYS_madvise),
    // Begin and end of a thread, signal frames.
    always(libc::SYS_rt_sigprocmask),
    always(libc::SYS_rt_sigreturn),
    always(libc::SYS_sigaltstack),
    always(libc::SYS_set_robust_list),
    always(libc::SYS_rseq),
    always(libc::SYS_sched_getaffinity),
    always(libc::SYS_gettid),
    always(libc::SYS_getpid),
    always(libc::SYS_exit),
    always(libc::SYS_exit_group),
    always(libc::SYS_restart_syscall),
    always(libc::SYS_sched_yield),
    // Where the vDSO has no clock (an emulated TSC).
    always(libc::SYS_clock_gettime),
    always(libc::SYS_clock_nanosleep),
    // Hash seeds.
    always(libc::SYS_getrandom),
    // The name of a new thread; giving up rights.
    when(
        libc::SYS_prctl,
        &[When::Is(0, libc::PR_SET_NAME as u32), When::Is(0, libc::PR_SET_NO_NEW_PRIVS as u32)],
    ),
    when(libc::SYS_seccomp, &[When::Is(0, libc::SECCOMP_SET_MODE_FILTER)]),
    // abort(): SIGABRT to oneself, so that a broken invariant is told from a forbidden call.
    always(libc::SYS_tgkill),
    when(libc::SYS_rt_sigaction, &[When::Is(0, libc::SIGABRT as u32)]),
];

/// A thread of this process, never another process. clone3 stands here because a second filter refuses it with an
/// error (see `refuse_clone3`): of two filters the harsher counts.
const SPAWN: &[Allowed] =
    &[when(libc::SYS_clone, &[When::Has(0, libc::CLONE_THREAD as u32)]), always(libc::SYS_clone3)];

/// Event loops.
const POLL: &[Allowed] = &[
    always(libc::SYS_epoll_wait),
    always(libc::SYS_epoll_pwait),
    always(libc::SYS_epoll_ctl),
    always(libc::SYS_epoll_create1),
    always(libc::SYS_eventfd2),
    always(libc::SYS_poll),
    always(libc::SYS_ppoll),
    when(
        libc::SYS_fcntl,
        &[
            When::Is(1, libc::F_GETFL as u32),
            When::Is(1, libc::F_SETFL as u32),
            When::Is(1, libc::F_GETFD as u32),
            When::Is(1, libc::F_SETFD as u32),
            When::Is(1, libc::F_DUPFD_CLOEXEC as u32),
        ],
    ),
];

/// Rate limits and time-outs.
const TIMER: &[Allowed] = &[always(libc::SYS_timerfd_create), always(libc::SYS_timerfd_settime)];

/// Traffic on sockets that exist.
const SOCKETS: &[Allowed] = &[
    always(libc::SYS_recvmsg),
    always(libc::SYS_sendmsg),
    always(libc::SYS_recvfrom),
    always(libc::SYS_sendto),
    always(libc::SYS_shutdown),
];

const KVM_RUN: u32 = 0xae80;
const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
const KVM_IOEVENTFD: u32 = 0x4040_ae79;
const KVM_IRQFD: u32 = 0x4020_ae76;

const VCPU: &[Allowed] = &[when(libc::SYS_ioctl, &[When::Is(1, KVM_RUN), When::Is(1, KVM_KVMCLOCK_CTRL)])];

const CONTROL: &[Allowed] = &[
    always(libc::SYS_poll),
    always(libc::SYS_ppoll),
    always(libc::SYS_eventfd2),
    // Hot-plug: sizes of disks, kinds of descriptors, wiring of a slot.
    always(libc::SYS_fstat),
    always(libc::SYS_newfstatat),
    always(libc::SYS_statx),
    always(libc::SYS_lseek),
    when(libc::SYS_ioctl, &[When::Is(1, KVM_IOEVENTFD), When::Is(1, KVM_IRQFD)]),
    when(
        libc::SYS_fcntl,
        &[
            When::Is(1, libc::F_GETFL as u32),
            When::Is(1, libc::F_SETFL as u32),
            When::Is(1, libc::F_GETFD as u32),
        ],
    ),
    // Statistics: resident guest memory and CPU time of the vCPU threads.
    always(libc::SYS_mincore),
    // End of the machine: vCPU threads are kicked out of the guest.
    always(libc::SYS_timerfd_settime),
];

const BLKDISCARD: u32 = 0x1277;
const BLKZEROOUT: u32 = 0x127f;
const BLKGETSIZE64: u32 = 0x8008_1272;

const BLOCK: &[Allowed] = &[
    always(libc::SYS_preadv),
    always(libc::SYS_pwritev),
    always(libc::SYS_preadv2),
    always(libc::SYS_pwritev2),
    always(libc::SYS_pread64),
    always(libc::SYS_pwrite64),
    always(libc::SYS_fdatasync),
    always(libc::SYS_fsync),
    always(libc::SYS_fallocate),
    always(libc::SYS_fstat),
    always(libc::SYS_newfstatat),
    always(libc::SYS_statx),
    always(libc::SYS_lseek),
    when(libc::SYS_ioctl, &[When::Is(1, BLKDISCARD), When::Is(1, BLKZEROOUT), When::Is(1, BLKGETSIZE64)]),
];

const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;

const NET: &[Allowed] = &[when(libc::SYS_ioctl, &[When::Is(1, TUNSETOFFLOAD), When::Is(1, TUNSETVNETHDRSZ)])];

const FIONBIO: u32 = 0x5421;

const VSOCK: &[Allowed] = &[
    always(libc::SYS_accept4),
    when(libc::SYS_getsockopt, &[When::Is(1, libc::SOL_SOCKET as u32)]),
    when(libc::SYS_ioctl, &[When::Is(1, FIONBIO)]),
];

/// Entropy itself is getrandom, which every thread has.
const RNG: &[Allowed] = &[];

/// Guest pages go back to the host: a hole in the memory file.
const BALLOON: &[Allowed] = &[always(libc::SYS_fallocate)];

/// vhost-user messages come with sendmsg and recvmsg.
const FS: &[Allowed] = &[always(libc::SYS_fstat)];
