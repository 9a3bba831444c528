//! The init that a container may ask for: PID 1 of its own, which passes signals on and reaps what is orphaned.
//!
//! A program that does not expect to be PID 1 ignores signals without a handler and leaves zombies. With
//! `dev.nacre.init` this process stays as PID 1 instead, and the program is its child:
//!
//! ```text
//! child: all steps, confined for good ── fork ──> process group of its own, foreground of the terminal, exec
//!   └── PID 1: waits for signals, passes each on to the program, reaps; exits with the program's status
//! ```
//!
//! It executes nothing, so no binary of the agent's has to be seen in the container (C02), and its memory stays
//! non-dumpable, so that only who may trace every process of the container can look into it (C15). It has the
//! program's user, capabilities and seccomp filter, and no descriptor but the three standard ones, which make
//! `/proc/1/fd/1` what it is without an init. The agent learns of the exec as always: the program's copy of the
//! channel is the last one.

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, getpid, kill_process, setpgid, wait};
use rustix::termios::tcsetpgrp;
use rustix::thread::set_name;

use super::error::StepError;
use super::program::Program;
use super::{Child, SETUP_FAILED, fail};
use crate::container::sys::{signal, task};

/// What `ps` shows.
const NAME: &std::ffi::CStr = c"nacre-init";

/// Forks the program and stays as its init; the exit status, where there is no program to stay for.
pub(super) fn run(child: Child, program: Program) -> u8 {
    // From before the fork on: a signal for the program must not be lost on a PID 1 without handlers.
    if let Err(error) = signal::block_all() {
        return fail(child.channel.as_fd(), "block signals", StepError::Call("block signals", error));
    }
    let forked = signal::fork(|| {
        take_foreground();
        task::reset_signals();
        fail(child.channel.as_fd(), "exec", program.exec())
    });
    match forked {
        Ok(pid) => {
            drop((child, program));
            // A name is a convenience.
            let _ = set_name(NAME);
            signal::close_and_live(3, pid, attend)
        }
        Err(error) => fail(child.channel.as_fd(), "fork", StepError::Call("fork the program", error)),
    }
}

/// A process group of the program's own, so that keys of the terminal reach it and not its init as well.
///
/// SIGTTOU is blocked here, so that a background process may do this. Without a terminal there is no foreground.
fn take_foreground() {
    if setpgid(None, None).is_ok() {
        let _ = tcsetpgrp(std::io::stdin(), getpid());
    }
}

/// PID 1's life: the exit status is the program's.
fn attend(program: Pid) -> u8 {
    loop {
        let ended = match signal::wait_any() {
            Ok(libc::SIGCHLD) => reap(program, WaitOptions::NOHANG),
            Ok(number) => {
                pass_on(program, number);
                None
            }
            Err(Errno::INTR) => None,
            // A filter that does not even let signals be waited for: what is left is the reaping.
            Err(_) => Some(reap(program, WaitOptions::empty()).unwrap_or(SETUP_FAILED)),
        };
        if let Some(status) = ended {
            return status;
        }
    }
}

/// Reaps every child that has ended, the program's orphans included; the status of the program, if it was among them.
fn reap(program: Pid, options: WaitOptions) -> Option<u8> {
    let mut ended = None;
    loop {
        match wait(options) {
            Ok(Some((pid, status))) if pid == program => {
                ended = Some(exit_status(status));
                if !options.contains(WaitOptions::NOHANG) {
                    return ended;
                }
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return ended,
        }
    }
}

fn exit_status(status: WaitStatus) -> u8 {
    let number = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(SETUP_FAILED)
}

fn pass_on(program: Pid, number: i32) {
    if let Some(signal) = u32::try_from(number).ok().and_then(crate::sys::signal) {
        // It may have ended, which SIGCHLD tells next.
        let _ = kill_process(program, signal);
    }
}
