//! bpf(2) for cgroup device programs, and seccomp(2).

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::check;

/// One instruction of extended BPF (kernel: Documentation/bpf/standardization/instruction-set.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Insn {
    /// Class, source and operation.
    pub(crate) code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub(crate) registers: u8,
    /// Jump or memory offset.
    pub(crate) offset: i16,
    /// Immediate operand.
    pub(crate) immediate: i32,
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// First fields of the BPF_PROG_LOAD variant of union bpf_attr; the kernel takes a short one.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Tries where a signal interrupts the verifier, which then says EAGAIN.
const TRIES: usize = 64;

fn bpf<T>(command: libc::c_long, attr: &T) -> rustix::io::Result<libc::c_long> {
    let call = || {
        // SAFETY: private to this file, and called only with the repr(C) structs above, each of which is the
        // beginning of the bpf_attr variant of its command and without padding; every pointer in them is live.
        check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) })
    };
    for _ in 1..TRIES {
        match call() {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    call()
}

/// Loads a BPF_PROG_TYPE_CGROUP_DEVICE program.
///
/// # Errors
/// Those of bpf(2): `Errno::INVAL` or `Errno::ACCESS` where the verifier refuses it.
pub(crate) fn load_device_program(program: &[Insn]) -> rustix::io::Result<OwnedFd> {
    let attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..ProgLoad::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &attr)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: BPF_PROG_LOAD returned a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device program to a cgroup v2 directory, beside those that are there: all must allow an access.
///
/// # Errors
/// Those of bpf(2).
pub(crate) fn attach_device_program(cgroup: impl AsFd, program: impl AsFd) -> rustix::io::Result<()> {
    bpf(BPF_PROG_ATTACH, &prog_attach(cgroup, program, BPF_F_ALLOW_MULTI)).map(|_| ())
}

/// Takes a device program off its cgroup.
///
/// # Errors
/// Those of bpf(2).
pub(crate) fn detach_device_program(cgroup: impl AsFd, program: impl AsFd) -> rustix::io::Result<()> {
    bpf(BPF_PROG_DETACH, &prog_attach(cgroup, program, 0)).map(|_| ())
}

fn prog_attach(cgroup: impl AsFd, program: impl AsFd, attach_flags: u32) -> ProgAttach {
    ProgAttach {
        target_fd: cgroup.as_fd().as_raw_fd().unsigned_abs(),
        attach_bpf_fd: program.as_fd().as_raw_fd().unsigned_abs(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags,
    }
}

const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;

/// Puts the calling thread under a classic BPF filter, for good.
///
/// # Errors
/// Those of seccomp(2): `Errno::ACCESS` without no_new_privs and without CAP_SYS_ADMIN.
pub(crate) fn seccomp_filter(program: &[libc::sock_filter], flags: u32) -> rustix::io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::TOOBIG)?;
    let prog = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: `prog` describes `program`, which lives through the call; the kernel only reads it.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const prog) })
        .map(|_| ())
}
