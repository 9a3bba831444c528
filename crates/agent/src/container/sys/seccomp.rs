//! seccomp(2).

use rustix::io::Errno;

use super::check;

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
