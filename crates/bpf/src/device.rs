//! Programs that say which devices the processes of a cgroup may use.

use std::os::fd::{AsFd, OwnedFd};

use crate::Insn;
use crate::sys::{self, ProgAttach};

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 2;

/// Loads a BPF_PROG_TYPE_CGROUP_DEVICE program.
///
/// # Errors
/// Those of bpf(2): `Errno::INVAL` or `Errno::ACCESS` where the verifier refuses it.
pub fn load_device_program(program: &[Insn]) -> rustix::io::Result<OwnedFd> {
    // The kernel takes 0 for the only attach type that this kind has.
    sys::load(program, PROG_TYPE_CGROUP_DEVICE, 0)
}

/// Attaches a device program to a cgroup v2 directory, beside those that are there: all must allow an access.
///
/// # Errors
/// Those of bpf(2).
pub fn attach_device_program(cgroup: impl AsFd, program: impl AsFd) -> rustix::io::Result<()> {
    sys::attach(&prog_attach(cgroup, program, F_ALLOW_MULTI))
}

/// Takes a device program off its cgroup.
///
/// # Errors
/// Those of bpf(2).
pub fn detach_device_program(cgroup: impl AsFd, program: impl AsFd) -> rustix::io::Result<()> {
    sys::detach(&prog_attach(cgroup, program, 0))
}

fn prog_attach(cgroup: impl AsFd, program: impl AsFd, attach_flags: u32) -> ProgAttach {
    ProgAttach {
        target_fd: sys::number(&cgroup),
        attach_bpf_fd: sys::number(&program),
        attach_type: CGROUP_DEVICE,
        attach_flags,
    }
}
