//! The registry of children against real processes. One test binary of its own, since the reaper takes every
//! child of its process: all tests here share one registry, and none waits for a child by itself.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use nacre_agent::process::{Child, Children, Spawned};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

/// The registry, with a thread that reaps as PID 1 does.
fn children() -> Arc<Children> {
    static CHILDREN: OnceLock<Arc<Children>> = OnceLock::new();
    Arc::clone(CHILDREN.get_or_init(|| {
        rustix::process::set_child_subreaper(Some(Pid::INIT)).unwrap();
        let children = Arc::new(Children::default());
        let reaper = Arc::clone(&children);
        thread::spawn(move || {
            loop {
                reaper.reap(32);
                thread::sleep(Duration::from_micros(200));
            }
        });
        children
    }))
}

fn shell(script: &str) -> Child {
    let make = || -> std::io::Result<Spawned> {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn()?;
        let pid = Pid::from_child(&child);
        Ok(Spawned { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())? })
    };
    children().spawn(make).unwrap()
}

fn wait(child: &Child) -> u32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let exit = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), child.wait()).await });
    exit.expect("the child was reaped").status
}

#[test]
fn status_reaches_its_owner_although_children_end_at_once() {
    let children: Vec<_> = (0..100).map(|n| (n % 50, shell(&format!("exit {}", n % 50)))).collect();
    for (status, child) in children {
        assert_eq!(wait(&child), status);
    }
}

#[test]
fn process_ended_by_a_signal_has_128_and_its_number() {
    let child = shell("kill -TERM $$");
    assert_eq!(wait(&child), 128 + 15);
}

#[test]
fn any_number_of_callers_learn_the_same_end_before_and_after() {
    let child = shell("exec sleep 600");
    let early = child.clone();
    let caller = thread::spawn(move || wait(&early));
    child.signal(Signal::KILL).unwrap();
    assert_eq!(caller.join().unwrap(), 128 + 9);
    assert_eq!(wait(&child), 128 + 9);
    assert_eq!(child.exit().unwrap().status, 128 + 9);
}

#[test]
fn signal_to_a_reaped_process_is_refused_and_hits_no_other() {
    let child = shell("exit 0");
    wait(&child);
    assert_eq!(child.signal(Signal::KILL), Err(rustix::io::Errno::SRCH));
}

#[test]
fn hundreds_of_orphans_do_not_hide_a_childs_status() {
    // Each subshell is orphaned when its parent ends, and comes to this process, the sub-reaper.
    let child = shell("i=0; while [ $i -lt 300 ]; do (sleep 0 &) ; i=$((i+1)); done; exit 42");
    assert_eq!(wait(&child), 42);
    let zombies = || {
        let me = format!(" Z {} ", std::process::id());
        let stats = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok());
        stats
            .filter_map(|e| std::fs::read_to_string(e.path().join("stat")).ok())
            .filter(|s| s.contains(&me))
            .count()
    };
    // Those that ended last are reaped within the thread's next rounds.
    let gone = (0..2000).any(|_| {
        thread::sleep(Duration::from_millis(5));
        zombies() == 0
    });
    assert!(gone, "orphans were left unreaped");
}

#[test]
fn killed_child_is_awaited_without_being_reaped() {
    let child = shell("trap '' TERM; while :; do sleep 60; done");
    assert!(!child.wait_ended(Duration::ZERO));
    assert!(child.kill_and_wait(Duration::from_secs(30)));
}

#[test]
fn failed_spawn_registers_nothing() {
    let refused: Result<Child, &str> = children().spawn(|| Err("no"));
    assert_eq!(refused.unwrap_err(), "no");
}
