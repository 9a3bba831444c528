//! A pseudo terminal of the container's own devpts.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::error::StepError;
use super::mounts::{attach, clone_at};
use super::root::{DEVPTS_SUPER_MAGIC, Links, Root, is_on};
use super::{Child, Role};
use crate::container::channel;
use crate::container::orders::{Report, StdioOrders};

/// Opens a terminal where the process wants one, sends its master to the agent, and shows it as /dev/console.
pub(super) fn open(child: &mut Child) -> Result<(), StepError> {
    let StdioOrders::Terminal { columns, rows } = child.stdio else { return Ok(()) };
    let master = open_master(child.root()?)?;
    unlockpt(&master).map_err(|error| StepError::Call("unlock terminal", error))?;
    // By the master, not by its number under /dev/pts, which something else could lie on (C04).
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).map_err(|error| StepError::Call("open terminal", error))?;
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).map_err(|error| StepError::Call("set terminal size", error))?;
    channel::send(&child.channel, &Report::Terminal, &[master.as_fd()])
        .map_err(|_| StepError::Orders("the agent does not listen"))?;
    if matches!(child.role, Role::Init(_)) {
        let console = child.root()?.file("/dev/console", Links::Refused)?;
        let mount = clone_at(slave.as_fd(), false).map_err(StepError::path("mount on", "/dev/console"))?;
        attach(&mount, &console).map_err(StepError::path("mount on", "/dev/console"))?;
    }
    child.terminal = Some(slave);
    Ok(())
}

fn open_master(root: &Root) -> Result<OwnedFd, StepError> {
    let path = "/dev/pts/ptmx";
    match root.open(path, OFlags::RDWR | OFlags::NOCTTY, Links::Refused) {
        Ok(master) if is_on(&master, DEVPTS_SUPER_MAGIC) => Ok(master),
        Ok(_) | Err(Errno::NOENT) => Err(StepError::NoDevpts),
        Err(Errno::LOOP) => Err(StepError::Symlink(path.to_owned())),
        Err(error) => Err(StepError::path("open", path)(error)),
    }
}
