//! OCI seccomp profiles as classic BPF programs.
//!
//! | module | owns |
//! |---|---|
//! | [`profile`] | the profile's meaning: what each system call number comes to |
//! | [`compile`] | that meaning as a program: a binary search by number, then conditions on arguments |
//! | `syscalls_*` | names and numbers of the architecture |
//!
//! Where a profile is open to interpretation, this is ours (runc's, where it has one):
//! - of the rules for one call, those with conditions come first, in the profile's order, then the first one
//!   without; conditions of one rule must all hold, unless two of them look at the same argument: then any does;
//! - names that this kernel does not have are skipped;
//! - where the default is an errno, calls newer than every one that the profile names get ENOSYS, so that a
//!   libc falls back;
//! - another architecture's calls (i386, x32) end the process: the guest kernel has neither.

mod compile;
mod profile;
#[cfg(target_arch = "x86_64")]
mod syscalls_x86_64;

use oci_spec::runtime::LinuxSeccomp;

use super::sys;

/// A profile that cannot become a filter.
#[derive(Debug, thiserror::Error)]
pub enum InvalidProfile {
    /// An action that needs a partner outside the container.
    #[error("action {0} is not supported")]
    Action(String),
    /// An errno that is none.
    #[error("errnoRet {0} is not an errno")]
    Errno(u32),
    /// A system call has six arguments.
    #[error("argument index {0} of system call {1} is above 5")]
    Argument(usize, String),
    /// A flag that needs a partner outside the container.
    #[error("flag {0} is not supported")]
    Flag(String),
    /// More rules with conditions than a filter has room for.
    #[error("it has more than 4096 rules with conditions")]
    TooManyRules,
    /// The kernel takes 4096 instructions.
    #[error("the filter has {0} instructions, at most 4096 are possible")]
    TooLong(usize),
}

/// A compiled profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    program: Vec<Insn>,
    flags: u32,
}

/// One instruction, struct sock_filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Insn {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) operand: u32,
}

impl Filter {
    /// Compiles a profile.
    ///
    /// # Errors
    /// [`InvalidProfile`].
    pub(crate) fn compile(seccomp: &LinuxSeccomp) -> Result<Self, InvalidProfile> {
        let program = compile::compile(&profile::Profile::from_oci(seccomp)?)?;
        Ok(Self { program, flags: profile::flags(seccomp)? })
    }

    /// Puts this process under the filter.
    ///
    /// # Errors
    /// Those of seccomp(2).
    pub(crate) fn install(&self) -> rustix::io::Result<()> {
        sys::seccomp::seccomp_filter(&self.raw(), self.flags)
    }

    /// The program as seccomp(2) takes it.
    pub(crate) fn raw(&self) -> Vec<libc::sock_filter> {
        let raw = |insn: &Insn| libc::sock_filter {
            code: insn.code,
            jt: insn.jump_true,
            jf: insn.jump_false,
            k: insn.operand,
        };
        self.program.iter().map(raw).collect()
    }

    /// As bytes, to be sent to the child: the flags, then eight bytes an instruction.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 8 * self.program.len());
        bytes.extend(self.flags.to_ne_bytes());
        for insn in &self.program {
            bytes.extend(insn.code.to_ne_bytes());
            bytes.extend([insn.jump_true, insn.jump_false]);
            bytes.extend(insn.operand.to_ne_bytes());
        }
        bytes
    }

    /// Back from [`Filter::to_bytes`]; none where the bytes have another length than that gives.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first_chunk::<4>()?;
        let (chunks, left) = rest.as_chunks::<8>();
        let insn = |&[c0, c1, jump_true, jump_false, k0, k1, k2, k3]: &[u8; 8]| Insn {
            code: u16::from_ne_bytes([c0, c1]),
            jump_true,
            jump_false,
            operand: u32::from_ne_bytes([k0, k1, k2, k3]),
        };
        left.is_empty()
            .then(|| Self { flags: u32::from_ne_bytes(*flags), program: chunks.iter().map(insn).collect() })
    }
}

#[cfg(test)]
mod tests;
