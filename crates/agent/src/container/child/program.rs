//! Working directory, program, and the exec.

use std::ffi::CString;
use std::os::fd::AsFd;

use rustix::fs::{Access, AtFlags, CWD, FileType, OFlags, accessat, stat};
use rustix::io::Errno;
use rustix::process::{fchdir, getcwd};
use rustix::thread::set_no_new_privs;

use super::error::StepError;
use super::root::Links;
use super::{Child, SETUP_FAILED, credentials, fail, init};
use crate::container::channel;
use crate::container::orders::{Command, Report};
use crate::container::plan::FirstProcess;
use crate::container::start::ExecError;
use crate::container::sys::task;

/// Init: the directory is made where it is missing, as Docker and runc do.
pub(super) fn enter_cwd_or_make(child: &mut Child) -> Result<(), StepError> {
    child.root()?.directory(&child.process.cwd, Links::InRoot)?;
    enter_cwd(child)
}

/// Enters the working directory, which must be below the root (C01).
pub(super) fn enter_cwd(child: &mut Child) -> Result<(), StepError> {
    let cwd = &child.process.cwd;
    // Magic links, /proc/self/fd/7 for one, are refused here already.
    let dir = child
        .root()?
        .open(cwd, OFlags::PATH | OFlags::DIRECTORY, Links::InRoot)
        .map_err(StepError::path("enter", cwd))?;
    fchdir(&dir).map_err(StepError::path("enter", cwd))?;
    // The kernel puts "(unreachable)" before a path that is not below the root.
    match getcwd(Vec::new()) {
        Ok(path) if path.to_bytes().starts_with(b"/") => Ok(()),
        _ => Err(StepError::CwdOutside(cwd.clone())),
    }
}

/// Finds the program as the user that will execute it.
pub(super) fn find(child: &mut Child) -> Result<(), StepError> {
    let name = child.process.args.first().cloned().unwrap_or_default();
    let not_found = |reason: &str| ExecError::NotFound { program: name.clone(), reason: reason.to_owned() };
    if name.contains('/') {
        executable(&name).map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR => not_found(&format!("stat {name}: no such file or directory")),
            error => ExecError::NotExecutable { program: name.clone(), reason: errno_text(error) },
        })?;
        child.program = Some(name);
        return Ok(());
    }
    let path = child.process.env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = false;
    for dir in path.split(':') {
        // An empty part is the working directory (POSIX).
        let candidate = if dir.is_empty() { format!("./{name}") } else { format!("{dir}/{name}") };
        match executable(&candidate) {
            Ok(()) => {
                child.program = Some(candidate);
                return Ok(());
            }
            Err(error) => denied |= error == Errno::ACCESS,
        }
    }
    let reason = "permission denied".to_owned();
    let error = if denied {
        ExecError::NotExecutable { program: name, reason }
    } else {
        not_found("executable file not found in $PATH")
    };
    Err(error.into())
}

fn executable(path: &str) -> Result<(), Errno> {
    let stat = stat(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Err(Errno::ISDIR),
        _ => accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS),
    }
}

/// The program as execve(2) takes it.
pub(super) struct Program {
    path: String,
    file: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    fn of(child: &Child) -> Result<Self, StepError> {
        let path = child.program.clone().unwrap_or_default();
        let nul = |_| StepError::Orders("a NUL byte in an argument");
        let strings = |texts: &[String]| {
            texts.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            file: CString::new(path.as_str()).map_err(nul)?,
            args: strings(&child.process.args).map_err(nul)?,
            env: strings(&child.process.env).map_err(nul)?,
            path,
        })
    }

    /// Executes it; returns only why that failed.
    pub(super) fn exec(&self) -> StepError {
        let Err(errno) = nix::unistd::execve(&self.file, &self.args, &self.env);
        exec_error(self.path.clone(), errno).into()
    }
}

/// Reports that all is ready, waits for the word, and executes the program, or stays as its init. Gives the exit status
/// where that failed.
pub(super) fn wait_and_exec(child: Child) -> u8 {
    let error = match wait_and_confine(&child) {
        Ok(Some(program)) => match child.first_process() {
            FirstProcess::Init => return init::run(child, program),
            FirstProcess::Program => program.exec(),
        },
        // The agent is gone or does not want this child any more.
        Ok(None) => return SETUP_FAILED,
        Err(error) => error,
    };
    fail(child.channel.as_fd(), "exec", error)
}

/// The program, once it may run; none where the agent closed its end instead.
fn wait_and_confine(child: &Child) -> Result<Option<Program>, StepError> {
    let program = Program::of(child)?;
    task::cloexec_from(3).map_err(|error| StepError::Call("close_range", error))?;
    if child.watched {
        confine(child)?;
    }
    if channel::write(&child.channel, &Report::Ready).is_err() {
        return Ok(None);
    }
    match channel::read::<Command>(&child.channel) {
        Ok(Command::Start) => {}
        Ok(_) | Err(_) => return Ok(None),
    }
    if !child.watched {
        confine(child)?;
    }
    Ok(Some(program))
}

/// The last steps, after which little but exec may be possible: the filter decides. Whoever is confined before it waits needs read(2)
/// and write(2) too.
fn confine(child: &Child) -> Result<(), StepError> {
    if child.process.no_new_privileges {
        set_no_new_privs(true).map_err(|error| StepError::Call("no_new_privs", error))?;
    }
    if let Some(filter) = &child.filter {
        filter.install().map_err(|error| StepError::Call("install the seccomp filter", error))?;
    }
    credentials::finish(child)
}

fn exec_error(program: String, errno: nix::errno::Errno) -> ExecError {
    let reason = task::errno_text(errno as i32);
    match errno {
        // Of a program that was found before: its interpreter is missing.
        nix::errno::Errno::ENOENT => ExecError::NotFound { program, reason },
        nix::errno::Errno::EACCES => ExecError::NotExecutable { program, reason },
        _ => ExecError::Failed { program, reason },
    }
}

fn errno_text(errno: Errno) -> String {
    task::errno_text(errno.raw_os_error())
}
