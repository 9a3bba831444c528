//! The symbols that a feature of nacre stands on.
//!
//! A fragment may be changed for speed or size; this list says what must not go with it.

/// A symbol and the feature that fails without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirement {
    /// Symbol without `CONFIG_`.
    pub symbol: &'static str,
    /// What a user misses when it is off.
    pub feature: &'static str,
}

macro_rules! required {
    ($($feature:literal: $($symbol:ident)+;)+) => {
        &[$($(Requirement { symbol: stringify!($symbol), feature: $feature },)+)+]
    };
}

/// Every requirement, by feature.
pub const REQUIRED: &[Requirement] = required! {
    "direct boot of an ELF image": PVH X86_MPPARSE BLK_DEV_INITRD BINFMT_ELF;
    "the clock without calibration spins": HYPERVISOR_GUEST PARAVIRT KVM_GUEST;
    "several vCPUs": SMP X86_X2APIC HOTPLUG_CPU;
    "devices without PCI or ACPI, named on the command line": VIRTIO_MMIO VIRTIO_MMIO_CMDLINE_DEVICES;
    "image layers and disks": VIRTIO_BLK EROFS_FS EROFS_FS_XATTR;
    "a writable root file system": OVERLAY_FS TMPFS TMPFS_XATTR EXT4_FS;
    "the channel to the host": VSOCKETS VIRTIO_VSOCKETS;
    "host directories": FUSE_FS VIRTIO_FS;
    "memory that comes back to the host": VIRTIO_BALLOON PAGE_REPORTING VIRTIO_MEM MEMORY_HOTPLUG;
    "entropy": HW_RANDOM HW_RANDOM_VIRTIO;
    "panic text for the host": PRINTK SERIAL_8250_CONSOLE;
    "a guest that ends when its kernel is broken": PANIC_ON_OOPS;
    "terminals": TTY UNIX98_PTYS VIRTIO_CONSOLE;
    "device nodes": DEVTMPFS;
    "namespaces": UTS_NS TIME_NS IPC_NS USER_NS PID_NS NET_NS;
    "cgroup v2 limits": CGROUPS MEMCG BLK_CGROUP BLK_DEV_THROTTLING CGROUP_SCHED CFS_BANDWIDTH CGROUP_PIDS
        CGROUP_HUGETLB CPUSETS CGROUP_MISC CGROUP_BPF;
    "seccomp profiles": SECCOMP SECCOMP_FILTER;
    "BPF in containers, and the device cgroup": BPF_SYSCALL;
    "confinement by the container itself": SECURITY_LANDLOCK;
    "system calls of common programs": FUTEX EPOLL SIGNALFD TIMERFD EVENTFD SHMEM AIO IO_URING MEMBARRIER RSEQ
        FHANDLE SYSVIPC POSIX_MQUEUE MEMFD_CREATE USERFAULTFD INOTIFY_USER FANOTIFY POSIX_TIMERS MULTIUSER;
    "networks": NET UNIX PACKET INET IPV6 VIRTIO_NET;
    "networks inside a container (CNI, Docker in a container)": VETH BRIDGE TUN MACVLAN IPVLAN DUMMY VXLAN;
    "nf_tables": NF_TABLES NF_TABLES_INET NFT_CT NFT_NAT NFT_MASQ NFT_COMPAT;
    "iptables": IP_NF_IPTABLES IP_NF_FILTER IP_NF_NAT IP6_NF_IPTABLES NETFILTER_XT_MATCH_COMMENT
        NETFILTER_XT_MATCH_CONNTRACK;
};
