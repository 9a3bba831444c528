//! Numbers 0, 1 and 2 of the program.

use std::os::fd::{AsFd, OwnedFd};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::fs::{FileType, fchown, fstat, makedev};
use rustix::io::Errno;
use rustix::process::{Uid, ioctl_tiocsctty};

use super::Child;
use super::error::StepError;
use crate::container::orders::StdioOrders;

pub(super) fn connect(child: &mut Child) -> Result<(), StepError> {
    let uid = child.identity()?.uid;
    let error = |error: nix::errno::Errno| {
        StepError::Call("connect a standard stream", Errno::from_raw_os_error(error as i32))
    };
    if let Some(slave) = &child.terminal {
        give(slave, uid);
        dup2_stdin(slave)
            .and_then(|()| dup2_stdout(slave))
            .and_then(|()| dup2_stderr(slave))
            .map_err(error)?;
        return ioctl_tiocsctty(std::io::stdin())
            .map_err(|error| StepError::Call("take the terminal", error));
    }
    let StdioOrders::Files { stdin, stdout, stderr } = child.stdio else { return Err(StepError::NoDevpts) };
    let files = [child.fds.take(stdin)?, child.fds.take(stdout)?, child.fds.take(stderr)?];
    files.iter().for_each(|file| give(file, uid));
    let [stdin, stdout, stderr] = files;
    dup2_stdin(stdin).and_then(|()| dup2_stdout(stdout)).and_then(|()| dup2_stderr(stderr)).map_err(error)
}

/// Makes the user the owner, so that the program can open `/dev/stdout` again. /dev/null stays everybody's.
fn give(file: &OwnedFd, uid: u32) {
    let Ok(stat) = fstat(file) else { return };
    let is_null =
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
    if stat.st_uid != uid && !is_null {
        // A convenience: what cannot change hands (a read-only file, a user namespace) still works as it is.
        let _ = fchown(file.as_fd(), Some(Uid::from_raw(uid)), None);
    }
}
