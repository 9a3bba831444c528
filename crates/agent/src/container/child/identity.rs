//! Who the process runs as, and what its environment says about that.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;

use super::Child;
use super::error::StepError;
use super::root::{Links, Root};
use crate::container::orders::StdioOrders;
use crate::container::passwd::{Identity, MAX_FILE, home_of, look_up};
use crate::container::plan::UserPlan;

/// Docker's default.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds the user's numbers, and adds HOME, PATH and TERM where the configuration has none.
pub(super) fn resolve(child: &mut Child) -> Result<(), StepError> {
    let needs_home = !has(&child.process.env, "HOME=");
    let by_name = matches!(child.process.user, UserPlan::Text(_));
    let passwd = if needs_home || by_name { read(child.root()?, "/etc/passwd")? } else { Vec::new() };
    let mut identity = match &child.process.user {
        UserPlan::Ids { uid, gid } => Identity { uid: *uid, gid: *gid, groups: Vec::new() },
        UserPlan::Text(text) => look_up(text, &passwd, &read(child.root()?, "/etc/group")?)?,
    };
    identity.groups.extend(&child.process.additional_gids);
    // C12: without it, a file's "group may not" would not hold once the primary group has changed.
    identity.groups.push(identity.gid);
    identity.groups.sort_unstable();
    identity.groups.dedup();
    let env = &mut child.process.env;
    if needs_home {
        env.push(format!("HOME={}", home_of(identity.uid, &passwd)));
    }
    if !has(env, "PATH=") {
        env.push(PATH.to_owned());
    }
    if matches!(child.stdio, StdioOrders::Terminal { .. }) && !has(env, "TERM=") {
        env.push("TERM=xterm".to_owned());
    }
    child.identity = Some(identity);
    Ok(())
}

fn has(env: &[String], name: &str) -> bool {
    env.iter().any(|entry| entry.starts_with(name))
}

/// A file of the image; empty where there is none.
fn read(root: &Root, path: &str) -> Result<Vec<u8>, StepError> {
    let error = |error| StepError::path("read", path)(error);
    // Its type is looked at before it is opened, since to open a device of the guest can do something, and again
    // afterwards; not blocking, since it may have become a fifo.
    let regular = |file: &OwnedFd| match FileType::from_raw_mode(fstat(file).map_err(error)?.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(StepError::Unexpected { path: path.to_owned(), expected: "a regular file" }),
    };
    match root.open(path, OFlags::PATH, Links::InRoot) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        other => regular(&other.map_err(error)?)?,
    }
    let file =
        root.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Links::InRoot).map_err(error)?;
    regular(&file)?;
    let mut bytes = Vec::new();
    let mut file = File::from(file).take(MAX_FILE as u64 + 1);
    file.read_to_end(&mut bytes).map_err(|cause| error(Errno::from_io_error(&cause).unwrap_or(Errno::IO)))?;
    if bytes.len() > MAX_FILE {
        return Err(error(Errno::FBIG));
    }
    Ok(bytes)
}
